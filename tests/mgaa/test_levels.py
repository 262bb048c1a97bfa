"""Every pair of a ratio map and a rank rule on decoder blocks with grouped-query attention, and the rehearsal that stands for them.

The methods that read a file are given what softmax and the common energy have found.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.budget import Ladder, Matrix, parameter_budget
from mgaa.errors import UsageError
from mgaa.factors import decompose_block
from mgaa.levels import Chosen, Target, adds_biases, allocate, check_factorizer, check_groups, preflight
from mgaa.methods import available_methods, load_method, method_traits
from mgaa.ranks import Rank, ladders_of
from mgaa.statistics.calibration import stream_statistics
from tests.support.allocations import reads_file, written
from tests.support.layers import gather, layer

BLOCK = {
    "q": ("attention", 256, 256),
    "k": ("attention", 64, 256),
    "v": ("attention", 64, 256),
    "o": ("attention", 256, 256),
    "gate": ("ffn", 384, 256),
    "up": ("ffn", 384, 256),
    "down": ("ffn", 256, 384),
}
COSINES = {"0.attention": 0.7, "0.ffn": 0.5, "1.attention": 0.95, "1.ffn": 0.9, "2.attention": 0.93, "2.ffn": 0.8}
Outcome = tuple[dict[str, float], list[Rank]]

levels = pytest.mark.parametrize(
    ("ratios", "ranks"),
    [(ratios, ranks) for ratios in available_methods("ratios") for ranks in available_methods("ranks")],
)
centring = pytest.mark.parametrize("centred", [True, False], ids=["centred", "uncentred"])


def matrices(blocks: tuple[int, ...] = (0, 1, 2)) -> list[Matrix]:
    """Decoder blocks in this order, whose keys and values are a quarter as wide as their queries."""
    return [
        Matrix(f"{block}.{name}", name, block, f"{block}.{sublayer}", m, n, False, role=name)
        for block in blocks
        for name, (sublayer, m, n) in BLOCK.items()
    ]


def spectrum(matrix: Matrix) -> Tensor:
    """Falling energies, each of a steepness of its own (equal energies go by position); those of values hardly fall."""
    width = min(matrix.m, matrix.n)
    steepness = 0.1 * list(BLOCK).index(matrix.local) + 0.037 * matrix.block + (0.0 if matrix.local == "v" else 1.0)
    return torch.arange(1, width + 1, dtype=torch.float64) ** -steepness


def ladders(blocks: tuple[int, ...] = (0, 1, 2), *, centred: bool, multiple: int = 8) -> list[Ladder]:
    found = matrices(blocks)
    return ladders_of(found, {x.name: spectrum(x) for x in found}, centred=centred, multiple=multiple)


def run(given: list[Ladder], ratios: str, ranks: str, compression: float = 0.2) -> Outcome:
    """Both levels, in the order of `given`; a file is given what softmax and the common energy find."""
    cosines = {name: COSINES[name] for name in dict.fromkeys(x.matrix.sublayer for x in given)}
    options: dict[str, Any] = {}
    if reads_file("ratios", ratios) or reads_file("ranks", ranks):
        found = allocate(given, cosines, Target(compression), ("softmax", {}), ("energy", {}))
        options["path"] = written(parameter_budget([x.matrix for x in given], compression), *found)
    level1 = options if reads_file("ratios", ratios) else {}
    level2 = options if reads_file("ranks", ranks) else {}
    return allocate(given, cosines, Target(compression), (ratios, level1), (ranks, level2))


# --- every pair


@levels
@pytest.mark.parametrize(
    ("centred", "multiple", "compression"), [(True, 1, 0.05), (False, 8, 0.2), (True, 16, 0.5), (False, 16, 0.05)]
)
def test_every_pair_spends_the_budget_to_less_than_the_cheapest_next_step_unless_its_roundings_are_verbatim(
    ratios: str, ranks: str, centred: bool, multiple: int, compression: float
) -> None:
    given = ladders(centred=centred, multiple=multiple)
    asked, outcome = run(given, ratios, ranks, compression)
    sizes = {name: sum(x.matrix.parameters for x in given if x.matrix.sublayer == name) for name in asked}
    assert sum(asked[s] * sizes[s] for s in sizes) == pytest.approx(compression * sum(sizes.values()), rel=1e-12)
    slack = parameter_budget(matrices(), compression) - sum(rank.parameters for rank in outcome)
    rungs = [x.ranks.index(rank.rank) for x, rank in zip(given, outcome, strict=True)]
    steps = [x.costs[k + 1] - x.costs[k] for x, k in zip(given, rungs, strict=True) if k + 1 < len(x.costs)]
    assert slack >= 0
    assert slack < min(steps) or method_traits("ranks", ranks).verbatim


@levels
@centring
def test_every_rank_is_a_multiple_below_break_even_or_dense_and_dense_is_offered(
    ratios: str, ranks: str, centred: bool
) -> None:
    _, outcome = run(ladders(centred=centred), ratios, ranks, 0.05)
    assert any(x.rank is None for x in outcome)
    for x in outcome:
        assert x.parameters == x.matrix.cost(x.rank, centred=centred)
        assert x.rank is None or (x.rank % 8 == 0 and x.parameters < x.matrix.parameters)


@levels
@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2), (2, 1, 0)])
def test_the_order_of_the_blocks_does_not_matter(ratios: str, ranks: str, order: tuple[int, ...]) -> None:
    asked, outcome = run(ladders(centred=True), ratios, ranks)
    moved, shuffled = run(ladders(order, centred=True), ratios, ranks)
    assert moved == pytest.approx(asked)
    assert {x.matrix.name: x.rank for x in shuffled} == {x.matrix.name: x.rank for x in outcome}


# --- the rehearsal


def outcome_of(call: Callable[[], object]) -> str:
    """What a call is refused with; nothing where it is not."""
    try:
        call()
    except UsageError as refusal:
        return str(refusal)
    return ""


@given(
    compression=st.floats(0.01, 0.99),
    band=st.one_of(st.none(), st.floats(-0.1, 1.0)),
    temperature=st.floats(-0.1, 1.0),
    power=st.floats(-0.5, 2.0),
    multiple=st.integers(0, 70),
    factors=st.sampled_from(["afm", "svd"]),
    ratios=st.sampled_from([name for name in available_methods("ratios") if not reads_file("ratios", name)]),
    ranks=st.sampled_from([name for name in available_methods("ranks") if not reads_file("ranks", name)]),
)
def test_the_rehearsal_refuses_exactly_what_would_be_refused_later(
    compression: float,
    band: float | None,
    temperature: float,
    power: float,
    multiple: int,
    factors: str,
    ratios: str,
    ranks: str,
) -> None:
    level1: Chosen = (ratios, {"band": band} | ({"temperature": temperature} if ratios == "softmax" else {}))
    level2: Chosen = (ranks, {"power": power} if ranks == "energy" else {})

    target = Target(compression, multiple)

    def later() -> None:
        allocate(ladders(centred=factors == "afm", multiple=multiple), COSINES, target, level1, level2)

    def now() -> None:
        preflight(matrices(), target, factors=(factors, {}), ratios=level1, ranks=level2)

    assert outcome_of(now) == outcome_of(later)


@pytest.mark.parametrize("name", available_methods("factors"))
def test_a_factorizer_says_without_data_whether_it_adds_biases(name: str, tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny()
    block = next(stream_statistics(model, torch.arange(60).reshape(4, 15)))
    block.gradients["self_attn.q_proj"] = torch.eye(32, dtype=torch.float64)
    weights = {"self_attn.q_proj": model.get_parameter("model.layers.0.self_attn.q_proj.weight").detach()}
    assert adds_biases((name, {})) == (decompose_block(weights, block, name)["self_attn.q_proj"].mean is not None)


@pytest.mark.parametrize("name", available_methods("factors"))
def test_fewer_sequences_than_groups_are_refused_by_those_factorizers_that_the_groups_change(name: str) -> None:
    it = layer(24, 64)
    found = (replace(gather(it.x, groups=groups).of("linear"), gradient=it.gradient) for groups in (1, 4))
    one, four = (load_method("factors", name, {})(statistics).moment for statistics in found)
    said = outcome_of(lambda: check_groups((name, {}), 32, 31))
    assert bool(said) == (not torch.allclose(one, four))
    assert not said or re.fullmatch(
        rf"statistics\.groups is 32, but there are 31 calibration sequences, expected .* that factors\.method={name} tells apart: "
        r"give 32 \(data\.calibration\.samples\), or lower statistics\.groups to 31",
        said,
    )
    check_groups((name, {}), 32, 32)


def test_the_groups_change_pooled_and_not_afm() -> None:
    assert method_traits("factors", "pooled").grouped
    assert not method_traits("factors", "afm").grouped


@pytest.mark.parametrize("name", available_methods("factors"))
def test_a_factorizer_says_without_data_whether_it_needs_gradients(name: str) -> None:
    statistics = gather(layer(24, 64).x).of("linear")
    said = outcome_of(lambda: load_method("factors", name, {})(statistics))
    assert bool(said) == method_traits("factors", name).gradients
    assert not said or "have no output gradients" in said


@pytest.mark.parametrize(("name", "options"), [("asvd", {"alpha": -1.0}), ("kronecker", {"damping": 0.0})])
def test_a_factorizer_refuses_its_options_before_anything_is_measured(name: str, options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="expected a positive number"):
        check_factorizer((name, options))


def test_an_option_of_the_factorizer_is_rehearsed_as_well() -> None:
    with pytest.raises(UsageError, match=r"factors\.alpha is -1\.0, expected a positive number"):
        preflight(
            matrices(), Target(0.2), factors=("asvd", {"alpha": -1.0}), ratios=("uniform", {}), ranks=("uniform", {})
        )
