"""The least predicted loss against the theory of Lagrange multipliers: whatever minimises `loss + price * cost` matrix by matrix loses the
least of all allocations that cost as much (Everett, 1963), and the best price bounds every allocation within a budget from below."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from mgaa.budget import Ladder, Matrix
from mgaa.errors import UsageError
from mgaa.ranks import ladders_of
from mgaa.ranks.loss import allocate

Tiny = Callable[..., PreTrainedModel]
Shapes = list[tuple[int, int]]
seeds = st.integers(0, 9999)


def sized(least: int, most: int, count: int) -> st.SearchStrategy[Shapes]:
    side = st.integers(least, most)
    return st.lists(st.tuples(side, side), min_size=2, max_size=count)


few, several = sized(3, 8, 3), sized(12, 40, 6)


def model(shapes: Shapes, seed: int, multiple: int = 1) -> list[Ladder]:
    """Ladders of random falling spectra, each of a steepness and a size of its own."""
    draw = torch.Generator().manual_seed(seed)
    matrices = [Matrix(f"{i}", f"{i}", i, f"{i}.ffn", m, n, False) for i, (m, n) in enumerate(shapes)]
    energies = {}
    for x in matrices:
        steepness, size, values = (torch.rand(k, dtype=torch.float64, generator=draw) for k in (1, 1, min(x.m, x.n)))
        energies[x.name] = 100**size * values.sort(descending=True).values ** (6 * steepness)
    return ladders_of(matrices, energies, centred=True, multiple=multiple)


def losses(ladder: Ladder) -> list[float]:
    """Predicted loss of every rung."""
    return [0.0 if rank is None else float(ladder.spectrum[rank:].sum()) for rank in ladder.ranks]


def loss(ladders: list[Ladder], rungs: list[int]) -> float:
    return sum(losses(x)[k] for x, k in zip(ladders, rungs, strict=True))


def cost(ladders: list[Ladder], rungs: list[int]) -> int:
    return sum(x.costs[k] for x, k in zip(ladders, rungs, strict=True))


def at_price(ladders: list[Ladder], price: float) -> list[int]:
    """The rung of least loss and cost of every matrix, where a parameter costs `price` of loss."""
    found = []
    for x in ladders:
        total = [one + price * parameters for one, parameters in zip(losses(x), x.costs, strict=True)]
        found.append(total.index(min(total)))
    return found


def within(ladders: list[Ladder], share: float) -> int:
    """A budget between that of the lowest rungs (0) and of dense (1)."""
    floor, dense = (cost(ladders, [k * (len(x.costs) - 1) for x in ladders]) for k in (0, 1))
    return floor + int(share * (dense - floor))


# --- optimal


@given(few, seeds, st.floats(0.0, 1.0))
def test_at_a_budget_that_a_price_spends_exactly_no_allocation_loses_less(
    shapes: Shapes, seed: int, share: float
) -> None:
    """Against every allocation there is."""
    ladders = model(shapes, seed)
    budget = cost(ladders, at_price(ladders, 10 ** (2 - 5 * share)))
    every = (list(rungs) for rungs in product(*(range(len(x.costs)) for x in ladders)))
    best = min(loss(ladders, rungs) for rungs in every if cost(ladders, rungs) <= budget)
    assert loss(ladders, allocate(ladders, budget)) == pytest.approx(best, abs=1e-12)


@given(several, seeds, st.integers(1, 3))
def test_a_lower_price_lifts_the_rungs_and_each_budget_on_the_way_is_spent_as_the_price_says(
    shapes: Shapes, seed: int, multiple: int
) -> None:
    ladders = model(shapes, seed, multiple)
    before = [0] * len(ladders)
    for price in (10.0, 1.0, 0.1, 0.01, 1e-3, 0.0):
        rungs = at_price(ladders, price)
        assert allocate(ladders, cost(ladders, rungs)) == rungs
        assert all(a <= b for a, b in zip(before, rungs, strict=True))
        before = rungs


@given(several, seeds, st.floats(0.0, 1.0))
def test_at_any_budget_the_loss_is_that_of_the_relaxation_up_to_its_last_step(
    shapes: Shapes, seed: int, share: float
) -> None:
    ladders = model(shapes, seed)
    budget = within(ladders, share)
    low, high = 0.0, 1e6
    for _ in range(100):  # the price at which the budget is spent
        middle = (low + high) / 2
        low, high = (low, middle) if cost(ladders, at_price(ladders, middle)) <= budget else (middle, high)
    found, below = allocate(ladders, budget), at_price(ladders, high)
    bound = loss(ladders, below) + high * (cost(ladders, below) - budget)
    assert bound - 1e-9 <= loss(ladders, found) <= loss(ladders, below) + 1e-9
    assert cost(ladders, found) <= budget


def test_the_way_to_dense_goes_straight_over_rungs_that_would_not_pay() -> None:
    """By hand: 8 x 8 at ranks 1 to 3 and dense has 16, 32, 48 and 64 parameters. Of equal energies it loses 7, 6, 5 and 0: per parameter
    dense saves 7 / 48, a rank 1 / 16. The steep one loses 15.875, 7.875, 3.875 and 0: each of its steps saves more, so it comes first."""
    flat, steep = (Matrix(name, name, 0, "0.ffn", 8, 8, False) for name in ("flat", "steep"))
    energies = {"flat": torch.ones(8).double(), "steep": 16 * 0.5 ** torch.arange(8).double()}
    ladders = ladders_of([flat, steep], energies, centred=False)
    ranks = {budget: allocate(ladders, budget) for budget in (32, 48, 64, 80, 96, 112, 128)}
    assert ranks == {32: [0, 0], 48: [0, 1], 64: [0, 2], 80: [0, 3], 96: [1, 3], 112: [2, 3], 128: [3, 3]}


def test_the_same_matrix_with_a_hundred_times_the_energy_is_served_first() -> None:
    small, large = (Matrix(name, name, 0, "0.ffn", 24, 40, False) for name in ("small", "large"))
    fall = 0.9 ** torch.arange(24, dtype=torch.float64)
    ladders = ladders_of([small, large], {"small": fall, "large": 100 * fall}, centred=False)
    assert allocate(ladders, within(ladders, 0.5)) == [0, len(ladders[1].ranks) - 1]


# --- the trust region


def shares(ladder: Ladder) -> list[float]:
    """Kept share of the parameters of every rung."""
    return [parameters / ladder.matrix.parameters for parameters in ladder.costs]


@given(several, seeds, st.floats(0.0, 0.95), st.floats(0.01, 1.0))
def test_no_matrix_is_further_from_the_share_of_all_than_its_trust_or_its_nearest_rung(
    shapes: Shapes, seed: int, share: float, trust: float
) -> None:
    """Below it only where the budget does not reach for all the nearest ones."""
    ladders = model(shapes, seed)
    budget = within(ladders, share)
    keep = budget / sum(x.matrix.parameters for x in ladders)
    found = allocate(ladders, budget, trust=trust)
    assert cost(ladders, found) <= budget
    least, most = [], []
    for x in ladders:
        away = [abs(share - keep) for share in shares(x)]
        bound = trust + 1 / x.matrix.parameters  # budgets are whole parameters
        allowed = [k for k, distance in enumerate(away) if distance <= bound] or [away.index(min(away))]
        least.append(allowed[0])
        most.append(allowed[-1])
    assert all(a <= b for a, b in zip(found, most, strict=True))
    assert cost(ladders, least) > budget or all(a >= b for a, b in zip(found, least, strict=True))
    left = budget - cost(ladders, found)
    steps = [x.costs[k + 1] - x.costs[k] for x, k, top in zip(ladders, found, most, strict=True) if k < top]
    assert all(step > left for step in steps)


@given(several, seeds, st.floats(0.0, 1.0))
def test_the_widest_trust_is_none(shapes: Shapes, seed: int, share: float) -> None:
    ladders = model(shapes, seed)
    budget = within(ladders, share)
    assert allocate(ladders, budget, trust=1.0) == allocate(ladders, budget)


def test_bounds_give_way_where_the_nearest_rungs_exceed_the_budget() -> None:
    """With its bias 10 x 10 keeps 30 parameters at rank 1 and 50 at rank 2: not all that should keep 41 can have the nearest."""
    ladders = model([(10, 10)] * 40, 0)
    found = allocate(ladders, 40 * 41, trust=0.01)
    assert cost(ladders, found) == 40 * 41
    assert set(found) == {0, 1}


@pytest.mark.parametrize("trust", [0.0, -0.1, 1.5, math.nan])
def test_a_trust_that_is_no_share_is_refused(trust: float) -> None:
    with pytest.raises(UsageError, match=r"ranks\.trust is .*, expected a number above 0 and at most 1"):
        allocate(model([(8, 8)] * 2, 1), 100, trust=trust)


# --- in a model


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(0))


def test_the_ratios_have_no_effect(tiny: Tiny, tokens: Tensor) -> None:
    one, other = (
        mgaa.compress_(tiny(), tokens, compression=0.3, ranks="loss", ratios=ratios).matrices
        for ratios in ("uniform", "proportional")
    )
    assert one == other


def test_beside_pruned_ffns_it_spends_what_their_widths_leave(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny()
    report = mgaa.compress_(model, tokens, compression=0.3, ranks="loss", channels="weighted")
    pruned = {x.name.rpartition(".")[2] for x in report.matrices if x.width is not None}
    assert pruned == {"gate_proj", "up_proj", "down_proj"}
    assert 0 <= report.budget_left < 64  # a step of the largest matrix of the attention
    assert bool(model(tokens).logits.isfinite().all())
