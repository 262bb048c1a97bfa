"""Recipe for training the embedded vision-language model."""

from dataclasses import dataclass

from demo import scenes

POINTS = 15
SELDOM, LATE = 2, 0.75
"""Interval in steps between batches of text, and fraction of the training from which every step has one: the gradient of text is so much
noisier than that of answers that it would slow them down."""
FEW = (0.2, 0.35)
"""Fractions of the training up to which drawn scenes have one thing, and at most two."""


@dataclass(frozen=True)
class Plan:
    """Everything that the result depends on besides the data."""

    steps: int = 3000
    batch: int = 6
    turns: int = 8
    rate: float = 7e-4
    text_batch: int = 1
    text_length: int = 256
    text_weight: float = 0.5
    decay: float = 0.05
    warmup: float = 0.04
    tower_steps: int = 1000
    tower_batch: int = 64
    tower_rate: float = 2e-3
    seed: int = 0

    goes_on: bool = False
    """Whether this training goes on from an earlier one: no first stage, scenes of every size and text in every step."""

    def reads(self, step: int) -> bool:
        """Tell whether a step has text besides its questions."""
        return self.goes_on or step % SELDOM == 0 or step >= LATE * self.steps

    def most(self, step: int) -> int:
        """Maximum number of things in a scene."""
        early = (few for few, end in enumerate(FEW, start=1) if step < end * self.steps)
        return scenes.MOST if self.goes_on else next(early, scenes.MOST)
