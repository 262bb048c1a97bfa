"""The contract of every rule in `mgaa/ranks` (a new file is tested without a new line), and the optimality of the common energy.

The rule `file` is given what the common energy has found.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mgaa.budget import Ladder, Matrix, parameter_budget
from mgaa.errors import UsageError
from mgaa.methods import available_methods, load_method, method_traits
from mgaa.ranks import Rank, allocate_ranks, by_sublayer, ladders_of, reach_of
from mgaa.ratios import allocate_ratios
from tests.support.allocations import reads_file, written

METHODS = available_methods("ranks")
FINDERS = [name for name in METHODS if not reads_file("ranks", name)]
"""The rules that read nothing."""
RATED = [name for name in FINDERS if not method_traits("ranks", name).whole_model]
"""The rules that make something of the ratios."""
Shapes = list[tuple[int, int, bool]]

shapes = st.lists(st.tuples(st.integers(12, 40), st.integers(12, 40), st.booleans()), min_size=2, max_size=6)
settings = st.tuples(shapes, st.integers(0, 99), st.integers(1, 3), st.booleans())
"""Arguments of `model`."""


def spectrum(width: int, seed: int) -> Tensor:
    """Falling energies, from flat to steep with the seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(width, dtype=torch.float64, generator=generator).sort(descending=True).values ** (seed % 7)


def model(shapes: Shapes, seed: int, multiple: int | str = 1, centred: bool = False) -> list[Ladder]:
    """Matrices of two sublayers, the first two of them in the first."""
    matrices = [
        Matrix(f"{i}", f"{i}", 0, "0.attention" if i < 2 else "0.ffn", *shape) for i, shape in enumerate(shapes)
    ]
    energies = {x.name: spectrum(min(x.m, x.n), seed + i) for i, x in enumerate(matrices)}
    return ladders_of(matrices, energies, centred=centred, multiple=multiple)


def reachable(ladders: list[Ladder], share: float) -> float:
    """A compression at `share` of what the lowest rungs remove, inside (0, 1)."""
    total = sum(x.matrix.parameters for x in ladders)
    largest = 1 - sum(x.costs[0] for x in ladders) / total
    return max(share * largest, 1e-9)


def run(name: str, ladders: list[Ladder], compression: float, **options: Any) -> list[Rank]:
    sizes = {s: sum(x.matrix.parameters for x in group) for s, group in by_sublayer(ladders).items()}
    ratios = allocate_ratios("uniform", dict.fromkeys(sizes, 0.5), sizes, reach_of(ladders), compression=compression)
    return ranked(name, ladders, ratios, compression, **options)


def ranked(
    name: str, ladders: list[Ladder], ratios: Mapping[str, float], compression: float, **options: Any
) -> list[Rank]:
    """`allocate_ranks`, with a file for the rule that needs one."""
    if name in METHODS and name not in FINDERS and "path" not in options:
        found: list[Rank] = []
        with suppress(UsageError):  # shall be told by the rule itself
            found = allocate_ranks("energy", ladders, ratios, compression=compression)
        options["path"] = written(parameter_budget([x.matrix for x in ladders], compression), ratios, found)
    return allocate_ranks(name, ladders, ratios, compression=compression, **options)


def climb(name: str, group: list[Ladder], budget: int) -> list[int]:
    """The rule itself, on one sublayer."""
    options = {} if name in FINDERS else {"path": written(ranks=at(group, climb("energy", group, budget)))}
    rungs: list[int] = load_method("ranks", name, options)(group, budget, **options)
    return rungs


def at(ladders: list[Ladder], rungs: list[int]) -> list[Rank]:
    return [Rank(x.matrix, x.ranks[k], x.costs[k], x.energies[k]) for x, k in zip(ladders, rungs, strict=True)]


def cost(ladders: list[Ladder], rungs: list[int]) -> int:
    return sum(x.costs[rung] for x, rung in zip(ladders, rungs, strict=True))


# --- the contract of every rule


@pytest.mark.parametrize("name", METHODS)
@given(setting=settings, share=st.floats(0.05, 1.0))
def test_a_rule_stays_within_the_budget_of_its_sublayer(name: str, setting: Any, share: float) -> None:
    for group in by_sublayer(model(*setting)).values():
        floor, dense = cost(group, [0] * len(group)), sum(x.matrix.parameters for x in group)
        budget = floor + int((1 - share) * (dense - floor))
        rungs = climb(name, group, budget)
        left = budget - cost(group, rungs)
        assert left >= 0
        steps = [x.costs[k + 1] - x.costs[k] for x, k in zip(group, rungs, strict=True) if k + 1 < len(x.costs)]
        assert all(step > left for step in steps)


@pytest.mark.parametrize("name", METHODS)
@given(setting=settings, share=st.floats(0.01, 1.0), tilt=st.floats(-1, 1))
def test_the_budget_is_spent_to_less_than_any_next_step_and_never_exceeded(
    name: str, setting: Any, share: float, tilt: float
) -> None:
    ladders = model(*setting)
    compression = reachable(ladders, share)
    budget, reach = parameter_budget([x.matrix for x in ladders], compression), reach_of(ladders)
    sizes = {s: sum(x.matrix.parameters for x in group) for s, group in by_sublayer(ladders).items()}
    ranks = ranked(name, ladders, tilted(sizes, reach, compression, tilt), compression)
    left = budget - sum(rank.parameters for rank in ranks)
    assert left >= 0
    for ladder, rank in zip(ladders, ranks, strict=True):
        rung = ladder.ranks.index(rank.rank)
        assert (rank.matrix, rank.parameters, rank.energy) == (ladder.matrix, ladder.costs[rung], ladder.energies[rung])
        full = rank.rank is None or method_traits("ranks", name).verbatim
        assert full or ladder.costs[rung + 1] - ladder.costs[rung] > left


def tilted(sizes: dict[str, int], reach: dict[str, float], compression: float, tilt: float) -> dict[str, float]:
    """Ratios that meet the budget exactly within reach, moved from one sublayer to the other as far as `tilt` says."""
    names, total = list(sizes), sum(sizes.values())
    if len(names) == 1:
        return {names[0]: compression}
    a, b = names
    low = max(0.0, (compression * total - reach[b] * sizes[b]) / sizes[a])
    high = min(reach[a], compression * total / sizes[a])
    first = low + (tilt + 1) / 2 * (high - low)
    return {a: first, b: min(max((compression * total - first * sizes[a]) / sizes[b], 0.0), reach[b])}


@pytest.mark.parametrize("name", METHODS)
@given(setting=settings, share=st.floats(0.05, 0.95), order=st.randoms(use_true_random=False))
def test_the_order_of_the_matrices_does_not_matter(name: str, setting: Any, share: float, order: Any) -> None:
    given_shapes, seed, *rest = setting
    ladders = model(given_shapes[:1] * 2 + given_shapes[2:], seed % 6 + 1, *rest)  # distinct energies: no ties
    compression = reachable(ladders, share)
    groups = list(by_sublayer(ladders).values())
    for group in groups:
        order.shuffle(group)
    order.shuffle(groups)
    shuffled = {rank.matrix.name: rank for rank in run(name, [x for group in groups for x in group], compression)}
    assert {rank.matrix.name: rank for rank in run(name, ladders, compression)} == shuffled


@pytest.mark.parametrize("name", METHODS)
@given(share=st.floats(0.05, 0.95), count=st.integers(2, 5), multiple=st.integers(1, 4))
def test_equal_matrices_are_at_most_one_rung_apart_where_they_are_not_dense(
    name: str, share: float, count: int, multiple: int
) -> None:
    matrices = [Matrix(f"{i}", f"{i}", 0, "0.ffn", 24, 40, False) for i in range(count)]
    ladders = ladders_of(matrices, {x.name: spectrum(24, 3) for x in matrices}, centred=True, multiple=multiple)
    ranks = [rank.rank for rank in run(name, ladders, reachable(ladders, share)) if rank.rank is not None]
    assert not ranks or max(ranks) - min(ranks) <= multiple


@pytest.mark.parametrize("name", METHODS)
@given(setting=settings)
def test_ratios_at_the_reach_of_the_ranks_leave_the_lowest_rungs(name: str, setting: Any) -> None:
    ladders = model(*setting)
    compression = 1 - sum(x.costs[0] for x in ladders) / sum(x.matrix.parameters for x in ladders)
    if 0 < compression < 1:
        ranks = ranked(name, ladders, reach_of(ladders), compression)
        assert [rank.rank for rank in ranks] == [x.ranks[0] for x in ladders]


@pytest.mark.parametrize("name", METHODS)
def test_a_compression_out_of_reach_names_the_largest_which_then_works(name: str) -> None:
    ladders = model([(64, 64, False), (16, 64, False), (64, 96, False)], 3, multiple=4)
    with pytest.raises(
        UsageError, match=r"compression 0\.97 is out of reach: .*largest reachable compression is"
    ) as no:
        ranked(name, ladders, reach_of(ladders), 0.97)
    named = float(str(no.value).split("compression is ")[1].split()[0])
    assert sum(x.parameters for x in run(name, ladders, named)) <= parameter_budget([x.matrix for x in ladders], named)


@pytest.mark.parametrize("name", RATED)
def test_a_ratio_out_of_reach_of_its_sublayer_is_refused(name: str) -> None:
    ladders = model([(64, 64, False), (64, 64, False), (64, 96, False)], 3, multiple=8)
    with pytest.raises(UsageError, match=r"ratio 0\.9 of sublayer 0\.attention leaves 819 parameters, .* take 2,048"):
        allocate_ranks(name, ladders, {"0.attention": 0.9, "0.ffn": 0.0}, compression=0.4)


@pytest.mark.parametrize("name", RATED)
def test_ratios_that_remove_too_little_are_refused(name: str) -> None:
    ladders = model([(64, 64, False), (64, 64, False), (64, 96, False)], 3, multiple=8)
    with pytest.raises(UsageError, match=r"ratios keep .* parameters, .* compression 0\.4 allows"):
        allocate_ranks(name, ladders, {"0.attention": 0.4, "0.ffn": 0.1}, compression=0.4)


@pytest.mark.parametrize("name", METHODS)
def test_a_misspelt_option_is_refused_with_the_valid_ones(name: str) -> None:
    with pytest.raises(UsageError, match=rf"ranks\.pwer is not an option of the method '{name}'; it takes "):
        run(name, model([(8, 8, False)] * 3, 1), 0.2, pwer=1.0)


def test_an_unknown_rule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=rf"ranks\.method is 'enrgy', expected one of {', '.join(METHODS)}"):
        run("enrgy", model([(8, 8, False)] * 3, 1), 0.2)


def test_a_step_beyond_break_even_is_refused_with_the_largest_that_fits() -> None:
    with pytest.raises(
        UsageError, match=r"ranks\.multiple is 8, but 1 \(8 x 64\) breaks even above rank 7: .* at most 7"
    ):
        model([(64, 64, False), (8, 64, False)], 1, multiple=8)


def test_a_matrix_that_no_rank_makes_smaller_stays_dense() -> None:
    ladders = model([(32, 32, False), (1, 32, False)], 2)
    assert [rank.rank is None for rank in run("energy", ladders, 0.3)] == [False, True]


# --- the common energy


small = st.lists(st.tuples(st.integers(3, 9), st.integers(3, 9), st.booleans()), min_size=2, max_size=3)


@given(small, st.integers(0, 99), st.floats(0.0, 1.0), st.sampled_from([0.5, 1.0]))
def test_no_allocation_within_the_budget_has_a_larger_least_energy(
    shapes: Shapes, seed: int, share: float, power: float
) -> None:
    """Against every allocation there is; `ladders` are those of one sublayer."""
    ladders = [
        Ladder.of(
            Matrix(f"{i}", f"{i}", 0, "0.ffn", *shape), spectrum(min(shape[:2]), seed + i), multiple=1, centred=False
        )
        for i, shape in enumerate(shapes)
    ]
    weighed = [x.weighed(power) for x in ladders]
    floor, dense = cost(ladders, [0] * len(ladders)), sum(x.matrix.parameters for x in ladders)
    budget = floor + int(share * (dense - floor))

    def least(rungs: tuple[int, ...]) -> float:
        return min(x.energies[rung] for x, rung in zip(weighed, rungs, strict=True))

    every = product(*(range(len(x.costs)) for x in ladders))
    best = max(least(rungs) for rungs in every if cost(ladders, list(rungs)) <= budget)
    found = load_method("ranks", "energy", {})(ladders, budget, power=power)
    assert least(tuple(found)) == best


@given(settings, st.floats(0.05, 0.95))
def test_every_matrix_keeps_the_common_energy_and_only_what_is_left_over_lifts_it_further(
    setting: Any, share: float
) -> None:
    """The lowest rungs that reach the least energy fit the budget, and one more of them for any poorest matrix does not."""
    for group in by_sublayer(model(*setting)).values():
        floor, dense = cost(group, [0] * len(group)), sum(x.matrix.parameters for x in group)
        budget = floor + int(share * (dense - floor))
        rungs = load_method("ranks", "energy", {})(group, budget)
        common = min(x.energies[rung] for x, rung in zip(group, rungs, strict=True))
        lowest = [next(k for k, e in enumerate(x.energies) if e >= common) for x in group]
        assert all(a <= b for a, b in zip(lowest, rungs, strict=True))
        assert cost(group, lowest) <= budget
        above = [next((k for k, e in enumerate(x.energies) if e > common), None) for x in group]
        assert None in above or cost(group, above) > budget


def test_a_steep_spectrum_needs_fewer_ranks_for_the_same_energy() -> None:
    matrices = [Matrix(name, name, 0, "0.ffn", 32, 32, False) for name in ("steep", "flat")]
    energies = {"steep": 0.5 ** torch.arange(32, dtype=torch.float64), "flat": torch.ones(32, dtype=torch.float64)}
    steep, flat = run("energy", ladders_of(matrices, energies, centred=False), 0.5)
    assert (steep.rank, flat.rank) == (1, 15)
    assert (steep.energy, flat.energy) == pytest.approx((0.5, 15 / 32))


def test_singular_values_weigh_the_tail_more_than_their_squares() -> None:
    matrices = [Matrix(name, name, 0, "0.ffn", 32, 32, False) for name in ("steep", "flat")]
    energies = {"steep": 0.5 ** torch.arange(32, dtype=torch.float64), "flat": torch.ones(32, dtype=torch.float64)}
    squares, values = (
        run("energy", ladders_of(matrices, energies, centred=False), 0.5, power=p)[0] for p in (1.0, 0.5)
    )
    assert values.rank > squares.rank  # type: ignore[operator]


@pytest.mark.parametrize("power", [0.0, -1.0, math.nan])
def test_a_power_that_is_not_positive_is_refused(power: float) -> None:
    with pytest.raises(UsageError, match=r"ranks\.power is .*expected a positive number"):
        run("energy", model([(8, 8, False)] * 3, 1), 0.2, power=power)


# --- the energies that are compared


@pytest.mark.parametrize("name", FINDERS)
@given(setting=settings, share=st.floats(0.05, 0.95))
def test_rules_compare_the_plain_energies_if_asked_to_and_report_those_of_the_metric(
    name: str, setting: Any, share: float
) -> None:
    metric = model(*setting)
    plain = {x.matrix.name: spectrum(len(x.spectrum), 17 + i) for i, x in enumerate(metric)}
    given: dict[str, Any] = {"centred": setting[3], "multiple": setting[2]}
    matrices, energies = [x.matrix for x in metric], {x.matrix.name: x.spectrum for x in metric}
    compression = reachable(metric, share)
    found = run(name, ladders_of(matrices, energies, **given, plain=plain), compression)
    assert [x.rank for x in found] == [x.rank for x in run(name, ladders_of(matrices, plain, **given), compression)]
    assert [x.energy for x in found] == [x.energies[x.ranks.index(y.rank)] for x, y in zip(metric, found, strict=True)]


def test_one_energy_across_the_model_is_that_of_one_sublayer_that_holds_everything() -> None:
    two = model([(64, 64, False), (16, 64, False), (96, 48, False), (48, 96, False)], 5)
    one = [replace(x, matrix=replace(x.matrix, sublayer="0.ffn")) for x in two]
    assert [x.rank for x in run("global_energy", two, 0.4)] == [x.rank for x in run("energy", one, 0.4)]


# --- the uniform share


@given(settings, st.floats(0.05, 0.95))
def test_before_the_refill_no_matrix_keeps_more_than_the_uniform_share(setting: Any, share: float) -> None:
    """Seen through a budget with nothing left to refill: what each matrix keeps is its highest rung within one share."""
    for group in by_sublayer(model(*setting)).values():
        floor, dense = cost(group, [0] * len(group)), sum(x.matrix.parameters for x in group)
        kept = floor / dense + share * (1 - floor / dense)
        within = [x.rung_within(kept * x.matrix.parameters) for x in group]
        if cost(group, within) >= floor:
            rungs = load_method("ranks", "uniform", {})(group, cost(group, within))
            assert cost(group, rungs) <= cost(group, within)


def test_uniform_gives_equal_shares_to_unequal_matrices() -> None:
    ladders = model([(64, 64, False), (16, 64, False), (96, 48, False)], 5)
    shares = [rank.parameters / rank.matrix.parameters for rank in run("uniform", ladders, 0.4)]
    assert shares == pytest.approx([0.6] * 3, abs=0.08)
    assert sum(x.parameters for x in run("uniform", ladders, 0.4)) <= parameter_budget([x.matrix for x in ladders], 0.4)


def test_uniform_takes_from_the_largest_share_what_the_lowest_rank_of_a_small_matrix_needs() -> None:
    """A real case of too many parameters: the lowest ranks of small matrices cost more than their shares."""
    ladders = model([(64, 32, False), (96, 16, False), (16, 64, False), (96, 96, False)], 1, multiple=8)
    compression = 0.63
    ranks = run("uniform", ladders, compression)
    assert sum(x.parameters for x in ranks) <= parameter_budget([x.matrix for x in ladders], compression)


# --- the rule that reads a file


LAYER: Shapes = [(64, 64, False), (16, 64, False), (96, 64, False), (64, 96, True)]


def reread(ladders: list[Ladder], found: list[Rank], compression: float = 0.4, **others: Any) -> list[Rank]:
    """The ranks as `file` gives them back, under ratios that are not theirs."""
    path = written(parameter_budget([x.matrix for x in ladders], 0.4), {}, found, **others)
    return run("file", ladders, compression, path=path)


@pytest.mark.parametrize("name", METHODS)
@given(setting=settings, share=st.floats(0.01, 1.0), tilt=st.floats(-1, 1))
def test_ranks_are_read_back_whatever_the_rule_and_the_ratios_and_there_is_nothing_left_to_refill(
    name: str, setting: Any, share: float, tilt: float
) -> None:
    ladders = model(*setting)
    compression = reachable(ladders, share)
    sizes = {s: sum(x.matrix.parameters for x in group) for s, group in by_sublayer(ladders).items()}
    ratios = tilted(sizes, reach_of(ladders), compression, tilt)
    found = ranked(name, ladders, ratios, compression)
    path = written(parameter_budget([x.matrix for x in ladders], compression), ratios, found)
    even = allocate_ratios("uniform", dict.fromkeys(sizes, 0.5), sizes, reach_of(ladders), compression=compression)
    assert allocate_ranks("file", ladders, even, compression=compression, path=path) == found


def test_where_the_ranks_cost_less_they_are_still_those_of_the_file() -> None:
    with_biases, without = (model(LAYER, 3, centred=centred) for centred in (True, False))
    found = run("energy", with_biases, 0.4)
    again = reread(without, found)
    assert [x.rank for x in again] == [x.rank for x in found]
    assert sum(x.parameters for x in again) < sum(x.parameters for x in found)


def test_ranks_that_cost_more_than_the_budget_are_refused() -> None:
    with_biases, without = (model(LAYER, 3, centred=centred) for centred in (True, False))
    with pytest.raises(
        UsageError, match=r"cost [\d,]+ linear parameters here, more than the [\d,]+ .* centred one adds"
    ):
        reread(with_biases, run("energy", without, 0.4))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            [(64, 64, False), (16, 64, False), (96, 64, False), (64, 80, True)],
            r": 3 is 64 x 96 here and 64 x 80 in the",
        ),
        (LAYER[:3], r": 3 is 64 x 96 here and missing in the file"),
        ([*LAYER, (64, 64, False)], r": 4 is in the file alone"),
    ],
)
def test_a_file_for_another_model_is_refused_with_the_first_difference(shapes: Shapes, message: str) -> None:
    with pytest.raises(UsageError, match="is an allocation file for another model" + message):
        reread(model(LAYER, 3), run("energy", model(shapes, 3), 0.4))


def test_a_file_for_another_compression_is_refused() -> None:
    ladders = model(LAYER, 3)
    with pytest.raises(
        UsageError, match=r"a budget of 10,444 .* \(compression 0\.4\), but compression 0\.5 allows 8,704"
    ):
        reread(ladders, run("energy", ladders, 0.4), compression=0.5)


@pytest.mark.parametrize("rank", [7, 32, 0])  # no multiple, break-even, nothing
def test_a_rank_that_is_not_on_its_ladder_is_refused(rank: int) -> None:
    ladders = model(LAYER, 3, multiple=2)
    first, *others = run("energy", ladders, 0.4)
    with pytest.raises(UsageError, match=rf"rank {rank} of 0 in .* expected a multiple of 2 from 2 to 30, or null"):
        reread(ladders, [Rank(first.matrix, rank, 0, 0.0), *others])
