"""Learning curve of a training, step by step: the same numbers for the same job, without times."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Point:
    """One optimizer step; step 0 is the model before training.

    Attributes:
        training: mean loss of the scored tokens of the batch, in nats, with dropout and before the step; None at step 0.
        validation: mean loss of the scored validation tokens after the step, where it was measured.
        rate: learning rate of the step.
    """

    step: int
    training: float | None
    validation: float | None
    rate: float


@dataclass(frozen=True)
class Curve:
    """All points, in order."""

    points: tuple[Point, ...]

    @property
    def best(self) -> int:
        """The step with the lowest validation loss, the earliest if equal; 0 means that no update was better."""
        return min((point for point in self.points if point.validation is not None), key=_validation).step

    @property
    def before(self) -> float:
        """Validation loss before training."""
        return _validation(self.points[0])

    @property
    def after(self) -> float:
        """The lowest validation loss, which is that of the merged model, up to rounding."""
        return _validation(next(point for point in self.points if point.step == self.best))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"best": self.best, "points": [asdict(point) for point in self.points]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Curve":
        """Read the result of `to_dict`."""
        return cls(tuple(Point(**point) for point in content["points"]))

    @classmethod
    def of_history(cls, history: Iterable[Mapping[str, Any]]) -> "Curve":
        """Read the log of transformers' Trainer: an entry for each step, and one more where it validated."""
        training: dict[int, tuple[float | None, float]] = {}
        validation: dict[int, float] = {}
        for entry in history:
            step = int(entry["step"])
            if "eval_loss" in entry:
                validation[step] = entry["eval_loss"]
            elif "loss" in entry:
                training[step] = (entry["loss"], entry["learning_rate"])
        steps = sorted(training | validation)
        points = ((step, *training.get(step, (None, 0.0))) for step in steps)
        return cls(tuple(Point(step, loss, validation.get(step), rate) for step, loss, rate in points))


def is_exhausted(validations: Sequence[float], patience: int | None) -> bool:
    """Return whether none of the last `patience` validations was better than the best before them."""
    if patience is None or not validations:
        return False
    best = min(range(len(validations)), key=validations.__getitem__)
    return len(validations) - 1 - best >= patience


def _validation(point: Point) -> float:
    assert point.validation is not None
    return point.validation
