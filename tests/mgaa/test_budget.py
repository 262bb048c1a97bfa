"""Truths of the budget arithmetic: legal ranks, ladders, refilling, and ratios that meet a budget exactly."""

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mgaa.budget import (
    Ladder,
    Matrix,
    check_reachable,
    fit_ratios,
    kept_energy,
    parameter_budget,
    rank_multiple,
    refill,
)
from mgaa.errors import UsageError


def matrix(m: int, n: int, *, bias: bool = False, sublayer: str = "0.ffn") -> Matrix:
    return Matrix(f"{m}x{n}", f"{m}x{n}", 0, sublayer, m, n, bias)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


sizes = st.integers(1, 64)


shapes = st.lists(st.tuples(st.integers(2, 40), st.integers(2, 40), st.booleans()), min_size=1, max_size=5)


def ladders(shapes: list[tuple[int, int, bool]], seed: int, multiple: int, centred: bool) -> list[Ladder]:
    """A ladder for each `(m, n, bias)`, with random falling spectra."""
    torch.manual_seed(seed)
    spectra = [
        torch.rand(min(m, n), dtype=torch.float64).sort(descending=True).values ** (seed % 9) for m, n, _ in shapes
    ]
    return [
        Ladder.of(matrix(m, n, bias=bias), spectrum, multiple=multiple, centred=centred)
        for (m, n, bias), spectrum in zip(shapes, spectra, strict=True)
    ]


families = st.builds(lambda *given: given, shapes, st.integers(0, 99), st.integers(1, 4), st.booleans())
"""Arguments of `ladders`."""


# --- ranks and costs


@pytest.mark.parametrize(
    ("m", "n", "centred", "largest"),
    [
        (4096, 4096, False, 2047),  # rank 2048 costs exactly as much as the matrix, so it is not legal
        (4096, 4096, True, 2047),
        (4096, 1024, False, 819),
        (1024, 4096, False, 819),
        (4096, 1024, True, 818),  # the bias of 4096 no longer fits beside rank 819
        (1024, 4096, True, 818),  # rank 819 and the bias of 1024 cost as much as the matrix
        (11008, 4096, False, 2985),
    ],
)
def test_ranks_end_just_below_break_even(m: int, n: int, centred: bool, largest: int) -> None:
    assert matrix(m, n).largest_rank(centred=centred) == largest


@given(sizes, sizes, st.booleans(), st.booleans())
def test_the_largest_rank_is_the_last_one_cheaper_than_dense(m: int, n: int, bias: bool, centred: bool) -> None:
    it = matrix(m, n, bias=bias)
    cheaper = [r for r in range(1, min(m, n) + 1) if it.cost(r, centred=centred) < it.cost(None, centred=centred)]
    assert it.largest_rank(centred=centred) == max(cheaper, default=0)


def test_centring_costs_a_bias_only_where_there_was_none() -> None:
    assert matrix(30, 20).cost(4, centred=False) == 4 * 50
    assert matrix(30, 20).cost(4, centred=True) == 4 * 50 + 30
    assert matrix(30, 20, bias=True).cost(4, centred=True) == 4 * 50
    assert matrix(30, 20, bias=True).cost(None, centred=True) == 600


@given(families)
def test_a_ladder_rises_in_cost_and_energy_and_ends_dense(family: Any) -> None:
    for ladder in ladders(*family):
        assert all(a < b for a, b in pairwise(ladder.costs))
        assert all(a <= b for a, b in pairwise(ladder.energies))
        assert (ladder.ranks[-1], ladder.costs[-1], ladder.energies[-1]) == (None, ladder.matrix.parameters, 1.0)


def test_the_rungs_are_the_multiples_up_to_break_even() -> None:
    ladder = Ladder.of(matrix(32, 32), torch.ones(32, dtype=torch.float64), multiple=4, centred=False)
    assert ladder.ranks == (4, 8, 12, None)
    assert ladder.costs == (256, 512, 768, 1024)
    assert ladder.energies == (0.125, 0.25, 0.375, 1.0)


def test_the_rung_within_a_cost_is_the_dearest_that_fits() -> None:
    ladder = Ladder.of(matrix(32, 32), torch.ones(32, dtype=torch.float64), multiple=4, centred=False)
    assert [ladder.rung_within(cost) for cost in (0.0, 255.0, 256.0, 511.9, 512.0, 1023.0, 1024.0, 9999.0)] == [
        0,
        0,
        0,
        0,
        1,
        2,
        3,
        3,
    ]


def test_a_matrix_that_no_rank_makes_smaller_has_the_dense_rung_alone() -> None:
    ladder = Ladder.of(matrix(1, 40), vector(1.0), multiple=1, centred=False)
    assert ladder.ranks == (None,)


@pytest.mark.parametrize(("smallest", "step"), [((256, 256), 8), ((255, 256), 1), ((4096, 132), 1), ((4096, 133), 8)])
def test_the_automatic_step_is_8_where_the_smallest_matrix_has_16_such_steps(
    smallest: tuple[int, int], step: int
) -> None:
    assert rank_multiple([matrix(4096, 4096), matrix(*smallest)], "auto") == step


def test_a_given_step_is_taken_as_it_is() -> None:
    assert rank_multiple([matrix(8, 8)], 3) == 3


@pytest.mark.parametrize("multiple", [0, -8, True, "eight", "8"])
def test_a_step_that_is_no_positive_whole_number_is_refused(multiple: int | str) -> None:
    with pytest.raises(UsageError, match=r"ranks\.multiple is .*expected a positive whole number"):
        rank_multiple([matrix(8, 8)], multiple)


# --- energy


def test_kept_energy_is_the_cumulated_share() -> None:
    assert kept_energy(vector(9.0, 4.0, 3.0)).tolist() == [0.0, 9 / 16, 13 / 16, 1.0]


def test_power_one_half_sums_singular_values_instead_of_their_squares() -> None:
    assert kept_energy(vector(9.0, 4.0, 1.0), 0.5).tolist() == [0.0, 3 / 6, 5 / 6, 1.0]


def test_a_spectrum_of_zeros_is_kept_whole_at_every_rank() -> None:
    assert kept_energy(vector(0.0, 0.0)).tolist() == [1.0, 1.0, 1.0]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), st.sampled_from([1e-12, 1e-4, 1e4, 1e12]))
def test_kept_energy_does_not_depend_on_the_scale(energies: list[float], scale: float) -> None:
    spectrum = vector(*sorted((0.0 if e < 1e-3 else e for e in energies), reverse=True))
    torch.testing.assert_close(kept_energy(spectrum), kept_energy(spectrum * scale), rtol=1e-12, atol=1e-12)


# --- the budget


@pytest.mark.parametrize(("compression", "budget"), [(0.2, 819), (0.3, 716), (0.7, 307), (0.5, 512), (0.999, 1)])
def test_the_budget_is_rounded_down(compression: float, budget: int) -> None:
    assert parameter_budget([matrix(32, 32)], compression) == budget


def test_decimal_compressions_of_round_numbers_lose_nothing_to_binary_fractions() -> None:
    for percent in range(1, 100):
        assert parameter_budget([matrix(1000, 1000)], percent / 100) == 10_000 * (100 - percent)


@given(st.integers(1, 9999), st.integers(1, 10**6), st.integers(1, 10**5))
def test_the_budget_is_exact_to_a_thousandth_of_a_parameter(parts: int, m: int, n: int) -> None:
    exact = (1 - Fraction(parts, 10_000)) * m * n
    assert -1 < parameter_budget([matrix(m, n)], parts / 10_000) - exact <= Fraction(1, 1000)


@pytest.mark.parametrize("compression", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_a_compression_outside_0_to_1_is_refused(compression: float) -> None:
    with pytest.raises(UsageError, match=r"compression is .* expected a number between 0 and 1"):
        parameter_budget([matrix(8, 8)], compression)


@given(families, st.floats(0, 1))
def test_refilling_stays_in_budget_and_leaves_less_than_any_next_step(family: Any, share: float) -> None:
    found = ladders(*family)
    floor, dense = sum(x.costs[0] for x in found), sum(x.costs[-1] for x in found)
    budget = floor + int(share * (dense - floor))
    rungs = refill(found, [0] * len(found), budget)
    left = budget - sum(x.costs[rung] for x, rung in zip(found, rungs, strict=True))
    assert left >= 0
    assert all(x.costs[k + 1] - x.costs[k] > left for x, k in zip(found, rungs, strict=True) if k + 1 < len(x.costs))


@given(families, st.floats(0, 1), st.floats(0, 1))
def test_refilling_in_two_goes_never_lowers_a_rung(family: Any, first: float, second: float) -> None:
    found = ladders(*family)
    floor, dense = sum(x.costs[0] for x in found), sum(x.costs[-1] for x in found)
    low, high = sorted(floor + int(share * (dense - floor)) for share in (first, second))
    before = refill(found, [0] * len(found), low)
    assert all(a <= b for a, b in zip(before, refill(found, before, high), strict=True))


def test_refilling_lifts_the_matrix_with_the_least_energy_first() -> None:
    steep, flat = (
        Ladder.of(matrix(32, 32), spectrum, multiple=4, centred=False)
        for spectrum in (0.5 ** torch.arange(32, dtype=torch.float64), torch.ones(32, dtype=torch.float64))
    )
    assert refill([steep, flat], [0, 0], 256 * 4) == [0, 2]


def test_a_step_too_dear_for_one_matrix_goes_to_the_next() -> None:
    wide, small = (
        Ladder.of(it, torch.ones(min(it.m, it.n), dtype=torch.float64), multiple=1, centred=False)
        for it in (matrix(100, 100), matrix(8, 8))
    )
    assert refill([wide, small], [0, 0], 200 + 16 + 150) == [0, 3]  # 150 buys no rank of the first, all of the second


@given(families)
def test_the_named_largest_compression_is_reachable_and_more_is_not(family: Any) -> None:
    found = ladders(*family)
    total, floor = sum(x.matrix.parameters for x in found), sum(x.costs[0] for x in found)
    with pytest.raises(UsageError, match=r"out of reach: .*the largest reachable compression is ") as refusal:
        check_reachable(total, floor, 0.99999)
    named = float(str(refusal.value).split("compression is ")[1].split()[0])
    if named > 0:
        check_reachable(total, floor, named)
    if named + 2e-4 < 1 and total * 1e-4 > 1:
        with pytest.raises(UsageError):
            check_reachable(total, floor, named + 2e-4)


# --- ratios under caps


positive = st.floats(0.01, 1.0)


@st.composite
def sublayers(draw: st.DrawFn) -> tuple[Tensor, Tensor, float, Tensor]:
    """Scores (some zero), parameters, a compression within reach, and caps."""
    count = draw(st.integers(1, 8))
    scores = draw(st.lists(st.one_of(st.just(0.0), positive, st.floats(1e-300, 1.0)), min_size=count, max_size=count))
    parameters = draw(st.lists(st.integers(1, 10**7), min_size=count, max_size=count))
    caps = vector(*draw(st.lists(positive, min_size=count, max_size=count)))
    weights = vector(*parameters)
    reach = float((caps * weights).sum() / weights.sum())
    return vector(*scores), weights, reach * draw(st.floats(0.01, 1.0)), caps


@given(sublayers())
def test_ratios_meet_the_budget_exactly_within_their_caps(case: tuple[Tensor, Tensor, float, Tensor]) -> None:
    scores, parameters, compression, caps = case
    ratios = fit_ratios(scores, parameters, compression, caps)
    assert float((ratios * parameters).sum() / parameters.sum()) == pytest.approx(compression, rel=1e-9)
    assert bool((ratios >= 0).all())
    assert bool((ratios <= caps).all())


@given(sublayers())
def test_ratios_below_their_caps_are_proportional_to_the_scores(case: tuple[Tensor, Tensor, float, Tensor]) -> None:
    scores, parameters, compression, caps = case
    ratios = fit_ratios(scores, parameters, compression, caps)
    free = (ratios < caps * (1 - 1e-9)) & (scores > 1e-6)
    if int(free.sum()) > 1:
        per_score = ratios[free] / scores[free]
        torch.testing.assert_close(per_score, per_score.mean().expand_as(per_score), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("caps", [(0.9, 0.3), (0.3, 0.9)])
def test_sublayers_without_a_score_share_what_is_left_equally(caps: tuple[float, float]) -> None:
    ratios = fit_ratios(vector(0, 0), vector(1, 1), 0.4, vector(*caps))
    torch.testing.assert_close(ratios, vector(*(0.3 if cap == 0.3 else 0.5 for cap in caps)))


def test_scores_far_below_one_are_as_good_as_any() -> None:
    ratios = fit_ratios(vector(1.0, 3e-310, 1e-310), vector(1, 1, 1), 0.6, vector(0.8, 0.8, 0.8))
    torch.testing.assert_close(ratios, vector(0.8, 0.75, 0.25))
    denormal = fit_ratios(vector(1.0, 3e-322, 1e-322), vector(1, 1, 1), 0.5, vector(0.8, 0.8, 0.8))
    assert float(denormal.sum()) == pytest.approx(1.5, rel=1e-12)
