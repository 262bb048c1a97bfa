"""LoRAP as a whole: the published ranks and widths, its generalisation, and models of every family that it compresses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mgaa
from mgaa.allocation.channels import ChannelScores, Pruning, prunable_ffns
from mgaa.budget import Ladder, Matrix, parameter_budget
from mgaa.compress import LORAP
from mgaa.errors import InputError, UsageError
from mgaa.levels import Target, allocate, preflight
from mgaa.methods import load_method
from mgaa.models.architectures import matrices_of
from mgaa.models.fused import unfuse_
from mgaa.ranks import Rank, ladders_of
from tests.mgaa.conftest import FAMILIES, is_mixture

Tiny = Callable[..., PreTrainedModel]
FFN = (("gate", 1), ("up", 1), ("down", 0))


def attention(hidden: int, kv: int, block: int = 0) -> list[Matrix]:
    """q, k, v and o of one block."""
    shapes = {"q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, hidden)}
    return [
        Matrix(f"{block}.{role}", role, block, f"{block}.attention", m, n, False, role)
        for role, (m, n) in shapes.items()
    ]


def decoder(blocks: int, hidden: int = 4096, kv: int = 4096, width: int = 11008) -> list[Matrix]:
    """Attention and a gated FFN, block by block."""
    found = []
    for block in range(blocks):
        shapes = {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
        found += attention(hidden, kv, block)
        found += [
            Matrix(f"{block}.{role}", role, block, f"{block}.ffn", m, n, False, role) for role, (m, n) in shapes.items()
        ]
    return found


def ladders(matrices: list[Matrix], *, centred: bool = False) -> list[Ladder]:
    one = torch.ones(1, dtype=torch.float64)
    return ladders_of(matrices, {x.name: one.expand(min(x.m, x.n)) for x in matrices}, centred=centred, multiple=1)


def ranks(group: list[Ladder], keep: float, **options: float) -> dict[str, int | None]:
    """What the rule gives one attention sublayer that keeps this share, by role."""
    budget = int(keep * sum(x.matrix.parameters for x in group) + 1e-6)
    rungs = load_method("ranks", "lorap", options)(group, budget, **options)
    return {x.matrix.role: x.ranks[rung] for x, rung in zip(group, rungs, strict=True)}


# --- the published roundings


@pytest.mark.parametrize(
    ("compression", "qk", "vo"), [(0.2, 1228, None), (0.3, 819, None), (0.4, 614, 1842), (0.5, 512, 1536)]
)
def test_the_ranks_of_a_7b_model_are_those_of_loraps_code(compression: float, qk: int, vo: int | None) -> None:
    assert ranks(ladders(attention(4096, 4096)), 1 - compression) == {"q": qk, "k": qk, "v": vo, "o": vo}


def of_7b(compression: float, blocks: int = 32, **ranks: Any) -> list[Rank]:
    """The whole allocation at the shapes of LLaMA-7B."""
    matrices = decoder(blocks)
    target = Target(compression, 1, Pruning())
    low, channels = target.parts(matrices)
    one = torch.ones(1, dtype=torch.float64)
    scores = {
        c: ChannelScores(one.expand(c.count), {m.local: one.expand(c.count) for m in c.matrices}) for c in channels
    }
    cosines = {f"{block}.{name}": 0.5 for block in range(blocks) for name in ("attention", "ffn")}
    return allocate(ladders(low), cosines, target, ("uniform", {}), ("lorap", ranks), scores)[1]


@pytest.mark.parametrize(("compression", "qk", "vo", "width"), [(0.2, 1228, None, 8807), (0.5, 512, 1536, 5504)])
def test_a_7b_model_has_the_published_ranks_and_widths_within_the_budget(
    compression: float, qk: int, vo: int | None, width: int
) -> None:
    found = of_7b(compression)
    assert {(x.matrix.role, x.rank, x.width) for x in found} == {
        *(("q", qk, None), ("k", qk, None), ("v", vo, None), ("o", vo, None)),
        *(("gate", None, width), ("up", None, width), ("down", None, width)),
    }
    assert [x.matrix for x in found] == decoder(32)
    assert sum(x.parameters for x in found) <= parameter_budget(decoder(32), compression)


def test_where_the_published_widths_exceed_the_budget_the_last_ffns_give_a_channel_back() -> None:
    """At 0.3 the code keeps 7706 of 7705.6 channels in every block, which is more than its attention leaves over."""
    found = of_7b(0.3)
    widths = [x.width for x in found if x.matrix.role == "down"]
    left = parameter_budget(decoder(32), 0.3) - sum(x.parameters for x in found)
    assert widths == [7706] * 27 + [7705] * 5
    assert 0 <= left < 3 * 4096


# --- any shape


@pytest.mark.parametrize("keep", [0.15, 0.3, 0.5])
@pytest.mark.parametrize("split", [0.5, 1.0, 3.0, 5.0])
@pytest.mark.parametrize("kv", [512, 1024, 4096])
def test_value_and_output_keep_split_times_the_parameters_of_query_and_key(kv: int, split: float, keep: float) -> None:
    group = ladders(attention(4096, kv))
    found = ranks(group, keep, split=split)
    kept = {x.matrix.role: x.matrix.cost(found[x.matrix.role], centred=False) for x in group}
    vo, qk = kept["v"] + kept["o"], kept["q"] + kept["k"]
    whole = sum(x.matrix.parameters for x in group)
    if found["o"] is not None and found["q"] is not None:
        assert vo / (split * qk) == pytest.approx(1, abs=0.03)
        fractions = [kept[x.matrix.role] / x.matrix.parameters for x in group]
        assert fractions[0] == pytest.approx(fractions[1], abs=0.01)
        assert fractions[2] == pytest.approx(fractions[3], abs=0.01)
    assert 0 <= keep * whole - vo - qk < 0.002 * whole


def test_what_value_and_output_cannot_use_goes_to_query_and_key() -> None:
    group = ladders(attention(4096, 1024))
    found = ranks(group, 0.8)
    assert (found["v"], found["o"]) == (None, None)
    left = 0.8 * sum(x.matrix.parameters for x in group) - 4096 * 4096 - 1024 * 4096
    assert sum(x.matrix.cost(found[x.matrix.role], centred=False) for x in group[:2]) == pytest.approx(left, rel=0.002)


@given(
    hidden=st.integers(8, 96),
    kv=st.integers(4, 96),
    keep=st.floats(0.01, 0.99),
    split=st.floats(0.1, 10.0),
    centred=st.booleans(),
)
def test_no_shape_exceeds_its_budget_where_the_lowest_ranks_fit(
    hidden: int, kv: int, keep: float, split: float, centred: bool
) -> None:
    group = ladders(attention(hidden, min(kv, hidden)), centred=centred)
    floor, whole = sum(x.costs[0] for x in group), sum(x.matrix.parameters for x in group)
    budget = floor + int(keep * (whole - floor))
    rungs = load_method("ranks", "lorap", {})(group, budget, split=split)
    assert sum(x.costs[rung] for x, rung in zip(group, rungs, strict=True)) <= budget


@pytest.mark.parametrize("split", [0.0, -1.0, float("inf"), float("nan")])
def test_a_split_that_is_not_positive_is_refused(split: float) -> None:
    with pytest.raises(UsageError, match=r"ranks\.split is .*, expected a positive number"):
        ranks(ladders(attention(64, 64)), 0.5, split=split)


# --- models


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("family", "compression"),
    [*((family, 0.5) for family in FAMILIES if not is_mixture(family.partition(",")[0])), ("llama", 0.2)],
)
def test_lorap_compresses_every_family_within_the_budget_and_reports_what_the_modules_have(
    family: str, compression: float, tiny: Tiny, tokens: Tensor, words: PreTrainedTokenizerFast, tmp_path: Any
) -> None:
    model = tiny(family)
    matrices = matrices_of(unfuse_(tiny(family)))
    report = mgaa.compress_(model, tokens, compression=compression, **LORAP)
    kept = sum(
        p.numel() for x in matrices for name, p in model.get_submodule(x.name).named_parameters() if "weight" in name
    )
    assert report.linear_parameters == kept <= parameter_budget(matrices, compression)
    assert report.budget_left == parameter_budget(matrices, compression) - kept
    assert {x.width for x in report.matrices if x.name.endswith("down_proj")} <= {38, 24, 23, 37}
    mgaa.save(model, words, tmp_path)
    again, _ = mgaa.load(tmp_path, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_level_1_drives_both_kinds_of_sublayer(tiny: Tiny, tokens: Tensor) -> None:
    report = mgaa.compress_(tiny("llama"), tokens, compression=0.4, **{**LORAP, "ratios": "linear"})
    assert len({x.ratio for x in report.sublayers}) == len(report.sublayers)
    for sublayer in report.sublayers:
        assert sublayer.reached == pytest.approx(sublayer.ratio, abs=0.06)


def test_a_mixture_is_refused_before_anything_is_measured(tiny: Tiny) -> None:
    with pytest.raises(InputError, match=r"a mixture of experts cannot be pruned; set channels\.method to none"):
        mgaa.compress_(tiny("mixtral"), torch.tensor([[1]]), **LORAP)


def test_a_mixture_without_pruning_is_compressed_by_the_rule(tiny: Tiny, tokens: Tensor) -> None:
    report = mgaa.compress_(tiny("mixtral"), tokens, compression=0.3, **{**LORAP, "channels": "none"})
    assert report.compression >= 0.3


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ("random", r"channels is 'random', expected 'none', 'weighted'"),
        ({"method": "weighted", "keep": 1}, r"channels\.keep is not an option; it takes keep_least, multiple"),
    ],
)
def test_another_way_to_prune_is_refused(channels: Any, message: str, tiny: Tiny, tokens: Tensor) -> None:
    with pytest.raises(UsageError, match=message):
        mgaa.compress_(tiny("llama"), tokens, channels=channels)


def test_a_compression_that_leaves_no_channel_is_refused_in_the_rehearsal() -> None:
    chosen: dict[str, Any] = {"factors": ("awsvd", {}), "ratios": ("uniform", {}), "ranks": ("lorap", {})}
    with pytest.raises(UsageError, match="out of reach"):
        preflight(decoder(1, 64, 64, 96), Target(0.995, 1, Pruning()), **chosen)


def test_the_pruned_ffns_are_those_that_can_be(tiny: Tiny) -> None:
    found = prunable_ffns(matrices_of(unfuse_(tiny("gpt2"))), Pruning())
    assert [(each.sublayer, each.count, each.cost, len(each.matrices)) for each in found] == [
        ("0.ffn", 48, 64, 2),
        ("1.ffn", 48, 64, 2),
    ]
