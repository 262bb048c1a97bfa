"""A curve knows its best step, and when there is no point in going on."""

import pytest

from mgaa.recovery import Curve, Point
from mgaa.recovery.curve import is_exhausted

HISTORY = [
    {"step": 0, "eval_loss": 3.0},
    {"step": 1, "loss": 2.9, "learning_rate": 0.2, "epoch": 0.1},
    {"step": 2, "loss": 2.5, "learning_rate": 0.1},
    {"step": 2, "eval_loss": 2.0},
    {"step": 3, "loss": 2.4, "learning_rate": 0.0},
    {"step": 3, "eval_loss": 2.0},
    {"step": 3, "train_runtime": 1.0, "train_loss": 2.6},
]


def test_the_log_becomes_one_point_per_step() -> None:
    points = [Point(0, None, 3.0, 0.0), Point(1, 2.9, None, 0.2), Point(2, 2.5, 2.0, 0.1), Point(3, 2.4, 2.0, 0.0)]
    assert Curve.of_history(HISTORY).points == tuple(points)


def test_the_best_is_the_earliest_of_the_lowest() -> None:
    curve = Curve.of_history(HISTORY)
    assert (curve.best, curve.before, curve.after) == (2, 3.0, 2.0)


def test_the_start_can_be_the_best() -> None:
    assert Curve((Point(0, None, 1.0, 0.0), Point(1, 1.0, 1.0, 0.1))).best == 0


def test_a_curve_survives_json() -> None:
    curve = Curve.of_history(HISTORY)
    assert Curve.from_dict(curve.to_dict()) == curve


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([3.0, 2.0, 2.5], 1, True),
        ([3.0, 2.0, 2.5], 2, False),
        ([3.0, 2.0, 2.0, 2.0], 2, True),
        ([3.0, 3.5, 3.4], 2, True),
        ([3.0, 3.5, 2.9], 1, False),
        ([3.0, 3.5, 3.6], None, False),
        ([], 1, False),
    ],
)
def test_patience_counts_validations_since_the_best(losses: list[float], patience: int | None, expected: bool) -> None:
    assert is_exhausted(losses, patience) is expected
