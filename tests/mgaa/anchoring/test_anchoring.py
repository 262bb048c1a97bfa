"""Factors that are fitted to the dense model: the least-squares optimum of every stage, on every family, and what is refused."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import mgaa
from mgaa.anchoring.anchoring import anchor_blocks
from mgaa.anchoring.fitting import AnchoredBlock, Anchoring
from mgaa.blocks.blockwise import hidden_states_of
from mgaa.budget import Matrix, parameter_budget
from mgaa.checkpoints.save import twin_of
from mgaa.decomposition.regression import ResidualMoments, solve_regression
from mgaa.errors import NumericalError, UsageError
from mgaa.levels import Chosen
from mgaa.methods import available_methods
from mgaa.models.architectures import architecture_of, decoder_blocks, matrices_of
from mgaa.models.entries import ARCHITECTURES, MULTIMODAL
from mgaa.models.fused import unfuse_
from mgaa.models.lowrank import LowRankLinear
from mgaa.statistics.accumulate import Accumulator
from mgaa.statistics.calibration import CalibrationSettings
from tests.mgaa.conftest import FAMILIES, VARIANTS

Tiny = Callable[..., PreTrainedModel]
EXACT = Anchoring(damping=1e-13)
AFM: Chosen = ("afm", {})
STRAIGHT = [
    family
    for family in FAMILIES
    if (entry := ARCHITECTURES.get(VARIANTS.get(family, (family,))[0]))
    and not entry.experts
    and not any(sublayer.output.endswith("norm") for sublayer in entry.sublayers)
]
"""Whose down writes to the residual stream itself, without a norm, a gate or a router between them."""
APART = [family for family in FAMILIES if family not in MULTIMODAL]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (16, 24), generator=torch.Generator().manual_seed(0))


def fitted(
    model: PreTrainedModel,
    tokens: Tensor,
    ranks: Callable[[Matrix], int | None],
    factors: Chosen = AFM,
    anchoring: Anchoring = EXACT,
    *,
    remember: bool = True,
    **measuring: int,
) -> list[AnchoredBlock]:
    matrices = matrices_of(model)
    given = {matrix.name: ranks(matrix) for matrix in matrices}
    how = (factors, {}, CalibrationSettings(**measuring), anchoring)
    return [*anchor_blocks(model, tokens, matrices, given, *how, remember=remember)]


def twin_with(model: PreTrainedModel, blocks: list[AnchoredBlock]) -> PreTrainedModel:
    twin = twin_of(model)
    for block in blocks:
        block.put_(twin)
    return twin


def inputs_and_outputs(model: PreTrainedModel, names: list[str], tokens: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What these modules read and give, (tokens, channels)."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
            seen[name] = given[0].flatten(0, -2), hidden_states_of(output).flatten(0, -2)

        return keep

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    with torch.no_grad():
        model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def best_error(wanted: Tensor, x: Tensor, rank: int) -> float:
    """The least squared error of `wanted` by a linear map of x of that rank with a bias: reduced-rank regression by the thin SVD."""
    wanted, x = wanted - wanted.mean(0), x - x.mean(0)
    answer = x @ torch.linalg.lstsq(x, wanted, driver="gelsd").solution
    unreachable = float((wanted - answer).square().sum())
    return unreachable + float(torch.linalg.svdvals(answer)[rank:].square().sum())


# --- the optimum


def of_rank_5(tiny: Tiny, tokens: Tensor, role: str) -> tuple[PreTrainedModel, PreTrainedModel, str]:
    """A dense model, its twin with all matrices at rank 5, and the name of the matrix of this role in the second block."""
    model = unfuse_(tiny()).double()
    name = next(m.name for m in matrices_of(model) if m.block == 1 and m.role == role)
    return model, twin_with(model, fitted(model, tokens, lambda matrix: 5)), name


@pytest.mark.parametrize("role", ["q", "v", "gate"])
def test_no_factors_of_that_rank_come_closer_to_the_dense_outputs_on_the_inputs_that_arrive(
    role: str, tiny: Tiny, tokens: Tensor
) -> None:
    model, twin, name = of_rank_5(tiny, tokens, role)
    _, wanted = inputs_and_outputs(model, [name], tokens)[name]
    x, found = inputs_and_outputs(twin, [name], tokens)[name]
    assert float((wanted - found).square().sum()) == pytest.approx(best_error(wanted, x, 5), rel=1e-6)


@pytest.mark.parametrize("role", ["o", "down"])
def test_what_writes_to_the_stream_comes_as_close_to_the_dense_stream_as_any_map_of_that_rank(
    role: str, tiny: Tiny, tokens: Tensor
) -> None:
    model, twin, name = of_rank_5(tiny, tokens, role)
    before = "model.layers.1" if role == "o" else "model.layers.1.post_attention_layernorm"
    there, here = (inputs_and_outputs(each, [name, before], tokens) for each in (model, twin))
    (x, found), dense = here[name], there[name][1]
    wanted = dense + there[before][0] - here[before][0]
    assert float((wanted - found).square().sum()) == pytest.approx(best_error(wanted, x, 5), rel=1e-6)


@pytest.mark.parametrize("family", STRAIGHT)
def test_what_the_stream_lacks_behind_dense_matrices_cannot_be_told_from_their_inputs(
    family: str, tiny: Tiny, tokens: Tensor
) -> None:
    """The normal equations: `E[(h - h') x'^T] = 0` behind every matrix that writes to the stream itself."""
    model = unfuse_(tiny(family)).double()
    twin = twin_with(model, fitted(model, tokens, lambda matrix: 4 if matrix.block == 0 else None))
    entry = architecture_of(model.config)
    (matrix,) = (m for m in matrices_of(model) if m.block == 1 and m.role == "down")
    behind = [inputs_and_outputs(each, [f"{entry.blocks}.1", matrix.name], tokens) for each in (model, twin)]
    lacks = behind[0][f"{entry.blocks}.1"][1] - behind[1][f"{entry.blocks}.1"][1]
    x = behind[1][matrix.name][0]
    if model.get_submodule(matrix.name).bias is not None:
        x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    assert float((lacks.T @ x).abs().max()) <= 1e-5 * float(lacks.norm() * x.norm())


@pytest.mark.parametrize("family", APART)
def test_in_front_of_the_first_compressed_matrix_nothing_changes(family: str, tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny(family)).double()
    first, *_ = fitted(model, tokens, lambda matrix: None)
    for name, dense in first.dense.items():
        torch.testing.assert_close(dense.weight, model.get_parameter(f"{name}.weight").detach(), rtol=1e-9, atol=1e-9)


def test_a_matrix_that_stays_dense_keeps_its_shape_and_gets_no_bias(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny()).double()
    blocks = fitted(model, tokens, lambda matrix: 4 if matrix.block == 0 else None)
    assert not blocks[1].factors
    assert len(blocks[1].dense) == 7
    assert all(dense.bias is None for dense in blocks[1].dense.values())
    twin = twin_with(model, blocks)
    assert sum(p.numel() for p in decoder_blocks(twin)[1].parameters()) == sum(
        p.numel() for p in decoder_blocks(model)[1].parameters()
    )
    assert not fitted(model, tokens, lambda matrix: 4 if matrix.block == 0 else None, anchoring=Anchoring(dense=False))[
        1
    ].dense


def test_a_matrix_that_stays_dense_is_held_in_the_dtype_of_the_model(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny()).to(torch.bfloat16)
    blocks = fitted(model, tokens, lambda matrix: 4 if matrix.block == 0 else None)
    assert {dense.weight.dtype for dense in blocks[1].dense.values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", available_methods("factors"))
def test_every_factorizer_can_be_anchored_and_comes_closer_than_without(name: str, tiny: Tiny, tokens: Tensor) -> None:
    losses = {}
    for anchor in ("none", "outputs", "stream"):
        model = tiny().double()
        dense = model(tokens).logits
        report = mgaa.compress_(model, tokens, compression=0.4, factors=name, ratios="uniform", groups=4, anchor=anchor)
        assert sum(matrix.parameters for matrix in report.matrices) <= parameter_budget(matrices_of(tiny()), 0.4)
        losses[anchor] = float((model(tokens).logits - dense).detach().square().mean())
    assert losses["outputs"] < losses["none"]
    assert losses["stream"] < losses["none"]


def test_a_smaller_micro_batch_changes_rounding_alone(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny()).double()
    one, two = (fitted(model, tokens, lambda matrix: 5, batch_size=size)[1].factors for size in (16, 3))
    for name, factors in one.items():
        torch.testing.assert_close(two[name].B @ two[name].A, factors.B @ factors.A, rtol=1e-8, atol=1e-8)


# --- the whole method


@pytest.mark.parametrize(
    ("family", "dtype"), [*((family, torch.float32) for family in APART), ("llama", torch.bfloat16)], ids=str
)
def test_what_is_kept_of_a_pass_changes_no_bit_of_the_next(
    family: str, dtype: torch.dtype, tiny: Tiny, tokens: Tensor
) -> None:
    model = unfuse_(tiny(family).to(dtype))

    def ranks(matrix: Matrix) -> int | None:
        return None if matrix.block == 0 and matrix.role in ("o", "down") else 5

    for kept, again in zip(*(fitted(model, tokens, ranks, remember=each) for each in (True, False)), strict=True):
        assert (kept.factors.keys(), kept.dense.keys()) == (again.factors.keys(), again.dense.keys())
        for name, factors in kept.factors.items():
            assert torch.equal(factors.B, again.factors[name].B)
            assert torch.equal(factors.A, again.factors[name].A)
        for name, dense in kept.dense.items():
            assert torch.equal(dense.weight, again.dense[name].weight)


@pytest.mark.parametrize("family", APART)
def test_the_whole_method_compresses_every_family_within_the_budget(family: str, tiny: Tiny, tokens: Tensor) -> None:
    model = tiny(family)
    budget = parameter_budget(matrices_of(unfuse_(copy.deepcopy(model))), 0.3)
    report = mgaa.compress_(model, tokens, compression=0.3, **mgaa.LOSS)
    assert sum(matrix.parameters for matrix in report.matrices) <= budget
    ranks = {matrix.name: matrix.rank for matrix in report.matrices}
    low = {name: module.rank for name, module in model.named_modules() if isinstance(module, LowRankLinear)}
    assert low == {name: rank for name, rank in ranks.items() if rank is not None}
    assert bool(torch.isfinite(model(tokens).logits).all())


def test_a_sweep_gives_what_single_calls_give(tiny: Tiny, tokens: Tensor) -> None:
    alone = tiny()
    mgaa.compress_(alone, tokens, compression=0.3, **mgaa.LOSS)
    (_, _), (together, _) = mgaa.sweep(tiny(), tokens, (0.2, 0.3), **mgaa.LOSS)
    with torch.no_grad():
        torch.testing.assert_close(together(tokens).logits, alone(tokens).logits)


# --- what is refused


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"anchor": "layers"}, r"anchor is 'layers', expected 'none', 'outputs', 'stream', or a mapping"),
        ({"anchor": {"method": "stream", "ridge": 1.0}}, r"anchor\.ridge is not an option; it takes dense, damping"),
        ({"anchor": {"method": "stream", "damping": 0.0}}, r"anchor\.damping is 0\.0, expected a positive number"),
        (
            {"anchor": "stream", "inputs": "compressed"},
            r"inputs is compressed, but factors are anchored .* set statistics\.inputs=dense",
        ),
        (
            {"anchor": "stream", "channels": "weighted"},
            r"prunes FFNs, but factors are anchored .* channels\.method=none",
        ),
        ({"factors": "kronecker", "inputs": "compressed"}, r"weights errors by gradients of the dense model, but"),
    ],
)
def test_what_cannot_be_anchored_is_refused_before_anything_is_measured(
    given: dict[str, Any], said: str, tiny: Tiny, tokens: Tensor
) -> None:
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=said):
        mgaa.compress_(model, tokens, **given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_regression_that_is_not_finite_names_the_matrix() -> None:
    x = torch.randn(8, 6, dtype=torch.float64)
    accumulator = Accumulator("input", 1, 1)
    accumulator.update(0, x)
    missing = ResidualMoments(torch.zeros(3, dtype=torch.float64), torch.full((3, 6), torch.inf, dtype=torch.float64))
    with pytest.raises(NumericalError, match=r"the regression of block\.linear on its inputs is not finite"):
        solve_regression(
            torch.ones(3, 6), missing, accumulator.finish(), damping=1e-4, centred=True, name="block.linear"
        )
