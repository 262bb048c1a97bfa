"""Recipe for training the embedded language model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Everything that the result depends on besides the text; `minutes` replaces `steps` if given."""

    steps: int = 2000
    minutes: float | None = None
    batch: int = 16
    length: int = 256
    rate: float = 3e-3
    decay: float = 0.1
    warmup: float = 0.02
    seed: int = 0
    compile: bool = True
