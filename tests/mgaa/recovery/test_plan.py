"""A plan says how many steps there are and which example comes when, and refuses what cannot run."""

import pytest
import torch

from mgaa.errors import UsageError
from mgaa.recovery import Plan


def test_the_defaults_are_those_of_lorap() -> None:
    plan = Plan()
    assert (plan.epochs, plan.rate, plan.batch, plan.rank, plan.scale, plan.dropout) == (2, 1e-4, 64, 8, 2.0, 0.05)


@pytest.mark.parametrize(("examples", "expected"), [(49760, 1555), (10, 1), (64, 2)])
def test_two_epochs_make_so_many_steps(examples: int, expected: int) -> None:
    assert Plan().total(examples) == expected


def test_steps_replace_epochs() -> None:
    assert Plan(steps=7).total(1000) == 7


def test_every_epoch_is_an_order_of_all_examples() -> None:
    order = Plan(steps=5, batch=8, micro_batch=2).order(20)
    assert len(order) == 40
    for epoch in order.split(20):
        assert sorted(epoch.tolist()) == list(range(20))
    assert not torch.equal(order[:20], order[20:])


def test_the_order_depends_on_the_seed_and_not_on_how_a_batch_is_divided() -> None:
    one, other, third = Plan(seed=0), Plan(seed=0, micro_batch=16, processes=2), Plan(seed=1)
    assert torch.equal(one.order(50), other.order(50))
    assert not torch.equal(one.order(50), third.order(50))


def test_differences_are_named() -> None:
    assert Plan(rank=4, seed=1).differences(Plan()) == ["rank 8 there, 4 here", "seed 0 there, 1 here"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "none"}, r"recovery.method is 'none', expected one of lora, diagonals"),
        ({"tune": "sum"}, r"recovery.tune is 'sum', expected one of product, factors"),
        ({"precision": "int8"}, r"recovery.precision is 'int8', expected one of auto, float32"),
        ({"rank": 0}, r"recovery.rank is 0, expected a whole number from 1"),
        ({"steps": 0}, r"recovery.steps is 0, expected a whole number from 1 or null"),
        ({"patience": 0}, r"recovery.patience is 0, expected a whole number from 1 or null"),
        ({"rate": 0.0}, r"recovery.rate is 0.0, expected a number above 0"),
        ({"epochs": float("nan")}, r"recovery.epochs is nan, expected a number above 0"),
        ({"dropout": 1.0}, r"dropout 1.0, .* expected the first two in \[0, 1\)"),
        ({"micro_batch": 5}, r"batch is 64, which does not divide into 1 processes x 5 sequences"),
        ({"processes": 3}, r"batch is 64, which does not divide into 3 processes x 4 sequences"),
    ],
)
def test_what_cannot_run_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Plan(**given)  # type: ignore[arg-type]
