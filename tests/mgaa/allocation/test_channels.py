"""Pruning the channels of an FFN: which remain, how many, and what the model then computes."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.allocation.channels import Channels, Pruning, Scores, load_scores, prunable, save_scores, score
from mgaa.budget import Matrix, kept_width
from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.models.architectures import architecture_of, decoder_blocks, matrices_of
from mgaa.models.fused import unfuse_
from mgaa.models.widths import ffn_linears, prune_
from mgaa.statistics.accumulate import Accumulator
from mgaa.statistics.calibration import stream_statistics
from mgaa.statistics.statistics import BlockStatistics
from tests.mgaa.conftest import FAMILIES, is_mixture

Tiny = Callable[..., PreTrainedModel]
Forward = Callable[[PreTrainedModel], Tensor]
DENSE_FFNS = [family for family in FAMILIES if not is_mixture(family.partition(",")[0])]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(0))


def scores(*importance: float) -> Scores:
    values = torch.tensor(importance, dtype=torch.float64)
    return Scores(values, {"down": values.square()})


# --- how many remain


@pytest.mark.parametrize(("ratio", "width"), [(0.2, 8807), (0.5, 5504)])
def test_the_widths_of_a_7b_model_are_those_of_loraps_code(ratio: float, width: int) -> None:
    assert kept_width(11008, ratio, 0.01, 1) == width


@pytest.mark.parametrize("keep_least", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.33, 0.6])
def test_the_width_is_what_the_published_slice_leaves(ratio: float, keep_least: float) -> None:
    order = list(range(1000))
    pruned = order[int(keep_least * 1000) : int((ratio + keep_least) * 1000)]
    assert kept_width(1000, ratio, keep_least, 1) == 1000 - len(pruned)


def test_an_aligned_width_is_a_multiple_below_the_published_one_unless_nothing_is_pruned() -> None:
    assert (kept_width(11008, 0.2, 0.01, 64), kept_width(100, 0.0, 0.01, 64)) == (8768, 100)


def ffn(count: int, pruning: Pruning, tiny: Tiny) -> Channels:
    (first, *_) = prunable(matrices_of(tiny("llama", intermediate_size=count)), pruning)
    return first


@pytest.mark.parametrize(
    ("ratio", "pruning"), [(0.99, Pruning(0.0, 2)), (0.95, Pruning(0.05, 1)), (0.8, Pruning(0.0, 16))]
)
def test_a_width_below_one_step_of_important_channels_is_refused(ratio: float, pruning: Pruning, tiny: Tiny) -> None:
    channels = ffn(48, pruning, tiny)
    with pytest.raises(
        UsageError, match=rf"ratio {ratio} of sublayer 0\.ffn leaves \d+ of 48 channels, .* lower ratios"
    ):
        channels.width(ratio)


@given(st.integers(1, 4000), st.sampled_from([0.0, 0.01, 0.05, 0.37]), st.sampled_from([1, 3, 8, 64, 128]))
def test_the_least_width_is_the_one_at_the_largest_ratio_and_a_multiple(
    count: int, keep_least: float, multiple: int
) -> None:
    shapes = {"up": (count, 8), "down": (8, count)}
    matrices = [Matrix(f"0.{r}", r, 0, "0.ffn", m, n, False, r) for r, (m, n) in shapes.items()]
    (channels,) = prunable(matrices, Pruning(keep_least, multiple))
    assert channels.width(1 - channels.least / channels.count) == channels.least
    assert channels.least % multiple == 0 or channels.least == count


@pytest.mark.parametrize("options", [{"keep_least": -0.1}, {"keep_least": 1.0}, {"multiple": 0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"channels\.(keep_least|multiple) is .*, expected a"):
        Pruning(**options)  # type: ignore[arg-type]


# --- which remain


def test_the_least_important_are_kept_beside_the_most_important() -> None:
    found = scores(5, 1, 4, 2, 3, 9, 8, 7, 6, 0)
    assert found.kept(5, keep_least=0.2).tolist() == [1, 5, 6, 7, 9]  # 0 and 1 for the least, then 7, 8, 9


def test_without_keeping_the_least_the_most_important_remain() -> None:
    assert scores(5, 1, 4, 2, 3).kept(2, keep_least=0.0).tolist() == [0, 2]


def test_equal_importance_goes_by_index() -> None:
    assert scores(1, 1, 1, 1).kept(2, keep_least=0.25).tolist() == [0, 3]


def test_importance_is_the_sum_of_the_norms_of_weights_times_inputs(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny("llama").double()
    statistics = next(iter(stream_statistics(model, tokens)))
    (channels, _) = prunable(matrices_of(model), Pruning())
    block = model.model.layers[0]
    weights = {matrix.local: model.get_submodule(matrix.name).weight.detach() for matrix in channels.matrices}
    seen: dict[str, Tensor] = {}
    for name in ("gate_proj", "down_proj"):
        block.mlp.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: seen.__setitem__(name, given[0].flatten(0, 1))
        )
    with torch.no_grad():
        model(tokens)
    x, h = (seen[name].norm(dim=0) for name in ("gate_proj", "down_proj"))
    gate, up, down = (block.mlp.get_submodule(f"{name}_proj").weight.detach().abs() for name in ("gate", "up", "down"))
    direct = (gate * x).norm(dim=1) + (up * x).norm(dim=1) + (down * h).norm(dim=0)
    found = score(channels, weights, statistics).importance * tokens.numel() ** 0.5
    torch.testing.assert_close(found, direct)


def test_the_kept_energy_is_one_minus_the_squared_error_in_the_metric_of_awsvd(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny("opt").double()
    statistics = next(iter(stream_statistics(model, tokens)))
    (channels, _) = prunable(matrices_of(model), Pruning())
    weights = {matrix.local: model.get_submodule(matrix.name).weight.detach() for matrix in channels.matrices}
    found = score(channels, weights, statistics)
    kept = found.kept(30, 0.05)
    for local, side in (("fc1", 0), ("fc2", 1)):
        root = statistics.of(local).mean_square.sqrt()
        rest = weights[local].clone()
        rest.index_fill_(side, kept, 0.0)
        lost = float((rest * root).square().sum() / (weights[local] * root).square().sum())
        assert found.kept_energy(local, 30, 0.05) == pytest.approx(1 - lost)


def test_the_curve_of_a_linear_ends_at_one_and_passes_through_every_width(tiny: Tiny, tokens: Tensor) -> None:
    found = scores(5, 1, 4, 2, 3, 9, 8, 7, 6, 0)
    shares, energies = found.curve("down", 0.2)
    assert (shares[-1], energies[-1]) == (1.0, 1.0)
    assert all(energies[w - 1] == pytest.approx(found.kept_energy("down", w, 0.2)) for w in range(2, 11))


def test_scores_are_read_back_as_they_were_written(tmp_path: Callable[..., object]) -> None:
    found = {"3.ffn": scores(3, 1, 2)}
    save_scores(found, tmp_path / "scores.safetensors")  # type: ignore[operator]
    again = load_scores(tmp_path / "scores.safetensors")["3.ffn"]  # type: ignore[operator]
    assert torch.equal(again.importance, found["3.ffn"].importance)
    assert torch.equal(again.energies["down"], found["3.ffn"].energies["down"])


def test_a_weight_that_is_not_finite_is_an_error_that_names_the_ffn(tiny: Tiny) -> None:
    (channels, _) = prunable(matrices_of(tiny("llama")), Pruning())
    inputs = Accumulator("x", 1, 1)
    inputs.update(0, torch.ones(4, 32))
    inside = Accumulator("h", 1, 1)
    inside.update(0, torch.ones(4, 48))
    statistics = BlockStatistics(
        {},
        {},
        {"x": inputs.finish(), "h": inside.finish()},
        {m.local: "h" if m.role == "down" else "x" for m in channels.matrices},
    )
    weights = {matrix.local: torch.full((matrix.m, matrix.n), torch.nan) for matrix in channels.matrices}
    with pytest.raises(NumericalError, match=r"channel scores of 0\.ffn have non-finite entries"):
        score(channels, weights, statistics)


# --- what the model then computes


@pytest.mark.parametrize("family", DENSE_FFNS)
def test_a_pruned_ffn_computes_as_if_its_channels_were_zero(family: str, tiny: Tiny, logits: Forward) -> None:
    model, silenced = (unfuse_(tiny(family)).double() for _ in range(2))
    kept = torch.tensor([0, 3, 5, 11, 40])
    prune_(model, {1: kept})
    block = decoder_blocks(silenced)[1]
    linears = ffn_linears(architecture_of(silenced.config), block)
    down = next(block.get_submodule(name) for name, role in linears.items() if role == "down")
    gone = torch.ones(48, dtype=torch.bool).index_fill(0, kept, False)
    with torch.no_grad():
        down.weight[:, gone] = 0
    torch.testing.assert_close(logits(model), logits(silenced), rtol=1e-10, atol=1e-10)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in silenced.parameters())


@pytest.mark.parametrize("family", [family for family in FAMILIES if is_mixture(family)])
def test_a_mixture_of_experts_is_refused_with_the_remedy(family: str, tiny: Tiny) -> None:
    with pytest.raises(InputError, match=r"the FFN \d\.ffn has \d+ linears .* set channels\.method to none"):
        prunable(matrices_of(unfuse_(tiny(family))), Pruning())
