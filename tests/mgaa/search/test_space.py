"""Every point of the cube is an allocation that spends the budget: exactly as shares, and to less than any next step as ranks."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mgaa.budget import Ladder, Matrix
from mgaa.errors import UsageError
from mgaa.levels import Target, allocate
from mgaa.models.architectures import matrices_of
from mgaa.models.fused import unfuse_
from mgaa.ranks import Rank, ladders_of
from mgaa.search import Space, space_of

BLOCK = {
    "q": ("attention", 32, 32),
    "k": ("attention", 16, 32),
    "v": ("attention", 16, 32),
    "o": ("attention", 32, 32),
    "gate": ("ffn", 48, 32),
    "up": ("ffn", 48, 32),
    "down": ("ffn", 32, 48),
}
TYPES = ("qk", "o", "gate", "up", "down")


def matrices(blocks: int = 3, bias: bool = False) -> list[Matrix]:
    """Decoder blocks whose keys and values are half as wide as their queries."""
    return [
        Matrix(f"{block}.{role}", role, block, f"{block}.{sublayer}", m, n, bias, role)
        for block in range(blocks)
        for role, (sublayer, m, n) in BLOCK.items()
    ]


def ladders(found: Sequence[Matrix], *, seed: int | None = 0, multiple: int = 1, centred: bool = True) -> list[Ladder]:
    """With falling random spectra, or with one for all matrices."""
    generator = torch.Generator().manual_seed(seed or 0)
    random = [torch.rand(32, dtype=torch.float64, generator=generator).sort(descending=True).values for _ in found]
    chosen = random[:1] * len(found) if seed is None else random
    energies = {x.name: e[: min(x.m, x.n)] for x, e in zip(found, chosen, strict=True)}
    return ladders_of(found, energies, centred=centred, multiple=multiple)


class Case(NamedTuple):
    space: Space
    ladders: list[Ladder]
    point: list[float]


def case(drawn: dict[str, Any], **options: Any) -> Case:
    """A point of a space that reaches its compression, which is at `reach` of the largest."""
    it = SimpleNamespace(**drawn | options)
    found = matrices(it.blocks, it.bias)
    steps = ladders(found, seed=it.seed, multiple=it.multiple, centred=it.centred)
    free = [x for x in steps if x.matrix.role != "v"]
    weights, total = sum(x.matrix.parameters for x in free), sum(x.parameters for x in found)
    floor = max(sum(x.costs[0] for x in free), it.least * weights)
    compression = it.reach * (weights - floor) / total
    space = space_of(found, compression=compression, groups=min(it.groups, it.blocks), least=it.least)
    return Case(space, steps, it.numbers[: len(space)])


_given = given(
    st.fixed_dictionaries(
        {
            "blocks": st.integers(1, 4),
            "groups": st.integers(1, 4),
            "bias": st.booleans(),
            "centred": st.booleans(),
            "multiple": st.integers(1, 6),
            "seed": st.integers(0, 99),
            "reach": st.floats(0.01, 0.99),
            "least": st.sampled_from([0.2, 0.4]),
            "numbers": st.lists(st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)), min_size=20, max_size=20),
        }
    )
)


def given_case(test: Callable[..., None]) -> Callable[..., None]:
    """The test with arguments of `case`: few, for each of them is a model."""
    return settings(max_examples=12)(_given(test))


def types_of(space: Space) -> list[str]:
    return [variable.type for variable in space.variables]


def space_with(compression: float = 0.2, blocks: int = 3, **options: Any) -> Space:
    return space_of(matrices(blocks), compression=compression, **options)


def rung(ladder: Ladder, rank: Rank) -> int:
    return ladder.ranks.index(rank.rank)


def kept(space: Space) -> float:
    """Parameters that the compression leaves, before the budget is rounded down to a whole number."""
    return (1 - space.compression) * (space.fixed + sum(variable.parameters for variable in space.variables))


# --- shares


@given_case
def test_every_point_spends_the_budget_exactly_before_rounding(drawn: Any) -> None:
    space, _, point = case(drawn)
    shares = space.shares(point)
    spent = space.fixed + sum(share * variable.parameters for variable, share in shares.items())
    assert spent == pytest.approx(kept(space), rel=1e-12)
    assert all(space.least <= share <= 1 for share in shares.values())
    assert [*shares] == [*space.variables]


@given_case
def test_a_larger_raw_share_never_gets_a_smaller_share_and_equal_ones_get_equal_shares(drawn: Any) -> None:
    space, _, point = case(drawn)
    shares = [share for _, share in sorted(zip(point, space.shares(point).values(), strict=True))]
    assert all(low <= high for low, high in pairwise(shares))
    by_raw = defaultdict(set)
    for raw, share in zip(point, space.shares(point).values(), strict=True):
        by_raw[raw].add(share)
    assert all(len(found) == 1 for found in by_raw.values())


def test_equal_raw_shares_are_the_uniform_allocation() -> None:
    space = space_with(compression=0.3)
    free = sum(variable.parameters for variable in space.variables)
    for raw in (0.0, 0.3, 1.0):
        shares = space.shares([raw] * len(space)).values()
        assert [*shares] == pytest.approx([(kept(space) - space.fixed) / free] * len(space), rel=1e-12)


def test_a_point_can_leave_a_type_dense() -> None:
    space = space_with(compression=0.2)
    shares = space.shares([0.5, 0.5, 0.0, 0.5, 1.0])
    assert dict(zip(types_of(space), shares.values(), strict=True))["down"] == 1.0


def test_a_type_compressed_alone_keeps_exactly_what_its_compression_leaves() -> None:
    found = matrices()
    total = sum(matrix.parameters for matrix in found)
    for role in BLOCK:
        own = sum(matrix.parameters for matrix in found if matrix.role == role)
        others = [other for other in BLOCK if other != role]
        space = space_of(found, compression=0.25 * own / total, dense=others, tied={})
        assert types_of(space) == [role]
        assert [*space.shares([0.7]).values()] == pytest.approx([0.75], rel=1e-12)


# --- allocations


@given_case
def test_the_budget_is_spent_to_less_than_any_next_step_and_never_exceeded(drawn: Any) -> None:
    space, steps, point = case(drawn)
    space.check(steps)
    _, ranks = space.allocate(steps, point)
    left = space.budget - sum(rank.parameters for rank in ranks)
    assert left >= 0
    for ladder, rank in zip(steps, ranks, strict=True):
        at = rung(ladder, rank)
        assert (rank.matrix, rank.parameters, rank.energy) == (ladder.matrix, ladder.costs[at], ladder.energies[at])
        assert rank.rank is None or ladder.costs[at + 1] - ladder.costs[at] > left


@given_case
def test_value_matrices_stay_dense(drawn: Any) -> None:
    space, steps, point = case(drawn)
    _, ranks = space.allocate(steps, point)
    assert all(rank.rank is None for rank in ranks if rank.matrix.role == "v")
    assert space.dense == {rank.matrix.name for rank in ranks if rank.matrix.role == "v"}


@given_case
def test_no_matrix_stands_below_the_rung_of_its_share(drawn: Any) -> None:
    space, steps, point = case(drawn, multiple=1)
    found = {
        ladder.matrix.name: (ladder, rank) for ladder, rank in zip(steps, space.allocate(steps, point)[1], strict=True)
    }
    for variable, share in space.shares(point).items():
        for ladder, rank in (found[name] for name in variable.matrices):
            assert rung(ladder, rank) >= ladder.rung_within(share * ladder.matrix.parameters)


@given_case
def test_matrices_of_one_variable_shape_and_spectrum_are_at_most_one_step_apart(drawn: Any) -> None:
    space, steps, point = case(drawn, multiple=1, seed=None)
    standing = {x.matrix.name: rung(x, rank) for x, rank in zip(steps, space.allocate(steps, point)[1], strict=True)}
    role = {ladder.matrix.name: ladder.matrix.role for ladder in steps}
    for variable in space.variables:
        for one in {role[name] for name in variable.matrices}:
            rungs = {standing[name] for name in variable.matrices if role[name] == one}
            assert max(rungs) - min(rungs) <= 1


@given_case
def test_the_ratios_of_the_sublayers_remove_exactly_the_compression(drawn: Any) -> None:
    space, steps, point = case(drawn)
    ratios, _ = space.allocate(steps, point)
    sizes: dict[str, int] = defaultdict(int)
    for ladder in steps:
        sizes[ladder.matrix.sublayer] += ladder.matrix.parameters
    assert [*ratios] == [*sizes]
    total, removed = sum(sizes.values()), sum(ratios[name] * size for name, size in sizes.items())
    assert removed == pytest.approx(space.compression * total, rel=1e-9)


# --- from an allocation to a point


@given_case
def test_the_point_nearest_to_the_shares_of_a_point_is_the_same_allocation(drawn: Any) -> None:
    space, steps, point = case(drawn)
    kept = {name: share for variable, share in space.shares(point).items() for name in variable.matrices}
    again = space.nearest(kept)
    assert [*space.shares(again).values()] == pytest.approx([*space.shares(point).values()], rel=1e-12)
    assert space.allocate(steps, again)[1] == space.allocate(steps, point)[1]


@pytest.mark.parametrize("groups", [1, 3])
def test_the_point_nearest_to_the_ranks_of_mgaa_is_legal(groups: int) -> None:
    steps = ladders(matrices())
    cosines = {name: 0.5 + 0.08 * i for i, name in enumerate(dict.fromkeys(x.matrix.sublayer for x in steps))}
    _, ranks = allocate(steps, cosines, Target(0.5, 1), ("softmax", {"temperature": 0.2}), ("energy", {}))
    space = space_with(compression=0.5, groups=groups, least=0.3)
    kept = {rank.matrix.name: rank.parameters / rank.matrix.parameters for rank in ranks}
    assert min(kept.values()) < space.least  # what lies outside is drawn to the bound
    point = space.nearest(kept)
    assert all(0 <= value <= 1 for value in point)
    _, found = space.allocate(steps, point)
    assert sum(rank.parameters for rank in found) <= space.budget


# --- variables


@pytest.mark.parametrize(
    ("blocks", "groups", "sizes"), [(5, 4, [2, 1, 1, 1]), (8, 4, [2, 2, 2, 2]), (7, 3, [3, 2, 2]), (3, 1, [3])]
)
def test_groups_are_consecutive_and_as_even_as_can_be_the_first_larger(
    blocks: int, groups: int, sizes: list[int]
) -> None:
    space = space_with(blocks=blocks, groups=groups)
    assert len(space) == 5 * groups
    for name in TYPES:
        spans = [variable.blocks for variable in space.variables if variable.type == name]
        assert [end - first for first, end in spans] == sizes
        assert (spans[0][0], spans[-1][1]) == (0, blocks)
        assert all(before[1] == after[0] for before, after in pairwise(spans))


@given_case
def test_every_matrix_has_one_variable_or_is_dense(drawn: Any) -> None:
    space, steps, _ = case(drawn)
    named = [name for variable in space.variables for name in variable.matrices] + [*space.dense]
    assert sorted(named) == sorted(ladder.matrix.name for ladder in steps)
    sizes = {ladder.matrix.name: ladder.matrix.parameters for ladder in steps}
    for variable in space.variables:
        assert variable.parameters == sum(sizes[name] for name in variable.matrices)
        assert all(variable.blocks[0] <= int(name.split(".")[0]) < variable.blocks[1] for name in variable.matrices)


def test_queries_and_keys_are_tied() -> None:
    first = space_with(blocks=2).variables[0]
    assert (first.type, first.matrices) == ("qk", ("0.q", "0.k", "1.q", "1.k"))


def test_nothing_is_tied_where_no_tie_is_given() -> None:
    assert types_of(space_with(tied={})) == ["q", "k", "o", "gate", "up", "down"]


def test_a_variable_is_named_by_its_type_and_blocks() -> None:
    names = [variable.name for variable in space_with(blocks=5, groups=4).variables]
    assert names[:4] == ["qk 0-1", "qk 2", "qk 3", "qk 4"]


@pytest.mark.parametrize(
    ("family", "types"),
    [
        ("llama", TYPES),
        ("gemma2", TYPES),
        ("phi3", TYPES),
        ("mixtral", TYPES),
        ("gpt2", ("qk", "o", "up", "down")),
        ("opt", ("qk", "o", "up", "down")),
        ("falcon", ("qk", "o", "up", "down")),
        ("gpt_neox", ("qk", "o", "up", "down")),
    ],
)
def test_one_group_of_a_model_has_a_variable_for_each_type_that_its_architecture_has(
    tiny: Any, family: str, types: tuple[str, ...]
) -> None:
    space = space_of(matrices_of(unfuse_(tiny(family))), compression=0.2)
    assert types_of(space) == [*types]
    assert len(space.dense) == 2


def test_the_experts_of_a_mixture_share_their_type(tiny: Any) -> None:
    space = space_of(matrices_of(unfuse_(tiny("mixtral"))), compression=0.2)
    for variable in space.variables[2:]:
        assert len(variable.matrices) == 2 * 4  # two blocks of four experts


def test_dense_and_shared_ffns_have_the_type_of_the_experts(tiny: Any) -> None:
    space = space_of(matrices_of(unfuse_(tiny("qwen2_moe"))), compression=0.2, groups=2)
    sizes = {variable.name: len(variable.matrices) for variable in space.variables if variable.type == "gate"}
    assert sizes == {"gate 0": 1, "gate 1": 4 + 1}  # a dense FFN; four experts and the shared one


# --- refusals


@pytest.mark.parametrize("groups", [0, -1, 4])
def test_a_number_of_groups_that_the_blocks_do_not_have_is_refused(groups: int) -> None:
    with pytest.raises(UsageError, match=rf"search\.groups is {groups}, expected 1 to 3, the blocks of the model"):
        space_with(groups=groups)


@pytest.mark.parametrize("least", [0.0, 1.0, -0.2, 1.5, float("nan")])
def test_a_least_share_that_is_none_is_refused(least: float) -> None:
    with pytest.raises(UsageError, match=rf"search\.least is {least}, expected a number between 0 and 1"):
        space_with(least=least)


def test_a_type_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match=r"search\.dense has 'q', expected types of this model: qk, v, o, gate, up"):
        space_with(dense=["v", "q"])


def test_leaving_everything_dense_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"search\.dense has all types of the model \(qk, v, o, gate, up, down\): leave"
    ):
        space_with(dense=["v", *TYPES])


@pytest.mark.parametrize(
    "point",
    [[0.5] * 4, [0.5] * 6, [], [0.5, 0.5, 1.01, 0.5, 0.5], [-0.01, 0.0, 0.0, 0.0, 0.0], [0.5] * 4 + [float("nan")]],
)
def test_a_point_outside_of_the_cube_or_of_another_length_is_refused(point: list[float]) -> None:
    with pytest.raises(UsageError, match=r"is not in this space: expected 5 numbers from 0 to 1, .*qk 0-2, o 0-2"):
        space_with().shares(point)


@pytest.mark.parametrize("compression", [0.0, 1.0])
def test_a_compression_that_is_none_is_refused(compression: float) -> None:
    with pytest.raises(UsageError, match="compression is"):
        space_with(compression=compression)


@pytest.mark.parametrize(
    ("options", "multiple"),
    [({"least": 0.3}, 1), ({"least": 0.05}, 4), ({"dense": ["v", "down"]}, 1), ({"dense": [], "least": 0.6}, 2)],
)
def test_the_named_largest_compression_is_reachable_and_more_is_not(options: dict[str, Any], multiple: int) -> None:
    found = matrices()
    steps = ladders(found, multiple=multiple)
    kinds = ", ".join(sorted(options.get("dense", ["v"]))) or "none"
    with pytest.raises(UsageError, match=re.escape(f"stay dense ({kinds}) and every other matrix")) as refusal:
        space_of(found, compression=0.99, **options).check(steps)
    assert "compression 0.99 is out of reach of this search" in str(refusal.value)
    named = float(str(refusal.value).split("compression is ")[1].split()[0])
    reaching = space_of(found, compression=named, **options)
    reaching.check(steps)
    for point in ([0.0] * len(reaching), [1.0, *[0.0] * (len(reaching) - 1)]):
        _, ranks = reaching.allocate(steps, point)
        assert sum(rank.parameters for rank in ranks) <= reaching.budget
    with pytest.raises(UsageError, match="out of reach"):
        space_of(found, compression=named + 2e-4, **options).check(steps)
