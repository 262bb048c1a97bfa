"""Blocks that are tuned to the dense model: what falls, what stays as it is, the same bits twice, and what is refused."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import mgaa
from mgaa.anchoring.anchoring import anchor_blocks
from mgaa.anchoring.fitting import AnchoredBlock, Anchoring
from mgaa.anchoring.refinement import Outputs, Refinement, refine_, root_of
from mgaa.checkpoints.save import twin_of
from mgaa.errors import NumericalError, UsageError
from mgaa.models.architectures import architecture_of, decoder_blocks, matrices_of
from mgaa.models.fused import unfuse_
from mgaa.models.lowrank import low_rank_layers
from mgaa.statistics.calibration import CalibrationSettings
from mgaa.statistics.gradients import stream_gradients

Tiny = Callable[..., PreTrainedModel]
SOME = Refinement(steps=40, rate=0.02)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (16, 24), generator=torch.Generator().manual_seed(0))


def tuned(
    model: PreTrainedModel, tokens: Tensor, refinement: Refinement | None, *, factors: str = "afm"
) -> tuple[AnchoredBlock, PreTrainedModel]:
    """What the second block becomes where half of the matrices of both are compressed, and the compressed model."""
    matrices = matrices_of(model)
    ranks = {matrix.name: 4 if matrix.role in ("q", "o", "gate", "up") else None for matrix in matrices}
    gradients = dict(stream_gradients(model, tokens)) if factors == "kronecker" else {}
    how = (CalibrationSettings(batch_size=8), Anchoring(), refinement)
    twin = twin_of(model)
    for block in [*anchor_blocks(model, tokens, matrices, ranks, (factors, {}), gradients, *how)]:
        block.put_(twin)
    return block, twin


def tensors_of(block: AnchoredBlock) -> dict[str, Tensor]:
    found = dict[str, Tensor]()
    for name, each in (*block.factors.items(), *block.dense.items()):
        found |= {f"{name}.{key}": tensor for key, tensor in vars(each).items() if tensor is not None}
    return found


def output_error(model: PreTrainedModel, twin: PreTrainedModel, tokens: Tensor, root: Tensor | None = None) -> float:
    """Of the hidden states behind the last block."""
    seen = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    for each in (model, twin):
        with torch.no_grad(), decoder_blocks(each)[-1].register_forward_hook(keep):
            each(tokens, use_cache=False)
    wanted, found = seen if root is None else (hidden @ root for hidden in seen)
    return float((wanted - found).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("family", ["llama", "falcon", "gemma2", "mixtral"])
def test_the_error_behind_tuned_blocks_falls(family: str, tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny(family)).double()
    _, closed = tuned(model, tokens, None)
    _, better = tuned(model, tokens, SOME)
    assert output_error(model, better, tokens) < output_error(model, closed, tokens)


def test_gradients_weigh_the_error(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny()).double()
    down = next(matrix for matrix in matrices_of(model) if matrix.block == 1 and matrix.role == "down")
    root = root_of(dict(stream_gradients(model, tokens))[1][down.local])
    _, closed = tuned(model, tokens, None, factors="kronecker")
    _, better = tuned(model, tokens, SOME, factors="kronecker")
    assert output_error(model, better, tokens, root) < output_error(model, closed, tokens, root)


def test_a_rate_that_makes_it_worse_changes_nothing(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny()).double()
    closed, wild = (tuned(model, tokens, each)[0] for each in (None, Refinement(steps=1, rate=50.0)))
    for name, tensor in tensors_of(wild).items():
        assert torch.equal(tensor, tensors_of(closed)[name].to(tensor.dtype))


def test_the_same_seed_gives_the_same_bits_and_comes_closer_in_bfloat16_as_well(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny()).to(torch.bfloat16)
    _, closed = tuned(model, tokens, None)
    (one, better), (two, _), (other, _) = (tuned(model, tokens, replace(SOME, seed=seed)) for seed in (0, 0, 1))
    assert output_error(model, better, tokens) < output_error(model, closed, tokens)
    assert all(torch.equal(tensor, tensors_of(two)[name]) for name, tensor in tensors_of(one).items())
    assert any(not torch.equal(tensor, tensors_of(other)[name]) for name, tensor in tensors_of(one).items())
    assert {tensor.dtype for tensor in tensors_of(one).values()} == {torch.bfloat16}


def test_nothing_but_what_was_compressed_or_refitted_changes(tiny: Tiny, tokens: Tensor) -> None:
    model = unfuse_(tiny())
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    before, learning = copy.deepcopy(model.state_dict()), [each.requires_grad for each in model.parameters()]
    closed, _ = tuned(model, tokens, None)
    found, twin = tuned(model, tokens, SOME)
    assert [each.requires_grad for each in model.parameters()] == learning
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in twin.parameters())
    assert {name: tensor.shape for name, tensor in tensors_of(found).items()} == {
        name: tensor.shape for name, tensor in tensors_of(closed).items()
    }
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    changed = {name.removesuffix(".weight") for name, each in twin.named_parameters() if id(each) not in own}
    low = {f"{name}.{part}" for name in low_rank_layers(twin) for part in ("A", "B")}
    kept = {name for name, _ in model.named_modules()} - low_rank_layers(twin).keys()
    assert {name.removesuffix(".bias") for name in changed} - low <= kept
    inner = architecture_of(model.config).blocks
    assert changed
    assert all(name.startswith(inner) for name in changed)


def test_the_one_call_tunes_and_keeps_the_budget(tiny: Tiny, tokens: Tensor) -> None:
    losses, sizes = [], []
    for refinement in ("none", {"method": "adam", "steps": 40, "rate": 0.02}):
        model = tiny().double()
        dense = model(tokens).logits
        mgaa.compress_(model, tokens, compression=0.4, **mgaa.LOSS, refinement=refinement)
        losses.append(float((model(tokens).logits - dense).detach().square().mean()))
        sizes.append(sum(each.numel() for each in model.parameters()))
    assert losses[1] < losses[0]
    assert sizes[1] == sizes[0]


def test_a_layer_is_tuned_to_the_least_squares_answer() -> None:
    """Of a single dense layer in place of a block the answer is known."""
    torch.manual_seed(0)
    x, wanted = torch.randn(4, 8, 3, dtype=torch.float64), torch.randn(4, 8, 2, dtype=torch.float64)
    layer = nn.Linear(3, 2).double()
    rows = torch.cat([x.flatten(0, 1), torch.ones(32, 1, dtype=torch.float64)], 1)
    best = float((rows @ torch.linalg.lstsq(rows, wanted.flatten(0, 1)).solution - wanted.flatten(0, 1)).square().sum())
    outputs = Outputs(1, lambda _: wanted, lambda _: layer(x))
    refine_(layer, [layer], outputs, Refinement(steps=400, rate=0.1), name="layer")
    assert outputs.error() == pytest.approx(best / float(wanted.square().sum()), rel=1e-6)


def test_an_output_without_effect_is_weighed_by_nothing() -> None:
    assert root_of(torch.zeros(3, 3)) is None
    assert root_of(None) is None


def test_an_error_that_is_not_finite_is_reported_and_leaves_the_block_as_it_was() -> None:
    layer = nn.Linear(3, 2)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(4, 3)
    outputs = Outputs(2, lambda _: torch.ones(4, 2), lambda _: layer(x) * layer.weight.mean().exp().exp())
    with pytest.raises(
        NumericalError, match=r"the error of layers\.0 is (nan|inf) while it is tuned.* lower refinement\.rate"
    ):
        refine_(layer, [layer], outputs, Refinement(steps=50, rate=1e6), name="layers.0")
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
    assert all(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"refinement": "sgd"}, r"refinement is 'sgd', expected 'none', 'adam', or a mapping"),
        ({"refinement": {"method": "adam", "lr": 1.0}}, r"refinement\.lr is not an option; it takes steps, rate, seed"),
        ({"refinement": {"method": "adam", "steps": 0}}, r"refinement\.steps is 0, expected a whole number from 1"),
        ({"refinement": {"method": "adam", "rate": 0.0}}, r"refinement\.rate is 0\.0, expected a positive number"),
        ({"refinement": {"method": "adam", "seed": -1}}, r"refinement\.seed is -1, expected a whole number from 0"),
        (
            {"refinement": "adam", "anchor": "none"},
            r"refinement is 'adam', .* but anchor is 'none': set anchor\.method",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_is_measured(
    given: dict[str, Any], said: str, tiny: Tiny, tokens: Tensor
) -> None:
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=said):
        mgaa.compress_(model, tokens, **({"anchor": "stream"} | given))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_float16_is_refused(tiny: Tiny, tokens: Tensor) -> None:
    with pytest.raises(UsageError, match=r"the backbone is in float16, .* set backbone\.dtype=bfloat16"):
        mgaa.compress_(tiny().half(), tokens, anchor="stream", refinement="adam")
