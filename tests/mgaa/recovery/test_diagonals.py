"""Two diagonals scale the leading directions of low-rank layers, alone learn, and fold into B without a remainder."""

import contextlib
import copy
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mgaa
from mgaa.errors import NumericalError, UsageError
from mgaa.models.lowrank import LowRankLinear, low_rank_layers
from mgaa.recovery import Examples, Plan, recover_
from mgaa.recovery.adapters import Adapter, fill, tensors_of
from mgaa.recovery.attach import attached
from mgaa.recovery.diagonals import Diagonals, Scaling, folded
from mgaa.recovery.merging import merge_, updates_of

Forward = Callable[[PreTrainedModel], Tensor]


@pytest.fixture
def plan(plan: Plan) -> Plan:
    return replace(plan, method="diagonals", rank=3, rate=3e-2)


@pytest.fixture
def low(tiny: Callable[..., PreTrainedModel], compress: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Every linear of its blocks is low-rank."""
    return compress(tiny(), keep=0.5)


def randomize(adapters: dict[str, Adapter]) -> None:
    generator = torch.Generator().manual_seed(2)
    fill(adapters, {name: torch.randn(x.shape, generator=generator) for name, x in tensors_of(adapters).items()})


def low_rank(dtype: torch.dtype = torch.float64, bias: bool = True) -> LowRankLinear:
    torch.manual_seed(0)
    return LowRankLinear(12, 20, 5, bias=bias, dtype=dtype)


def with_diagonals(layer: LowRankLinear, rank: int) -> tuple[Diagonals, Scaling]:
    adapter = Diagonals(layer, Plan(method="diagonals", rank=rank)).eval()
    randomize({"layer": adapter})
    return adapter, Scaling(adapter.lambda_b.detach(), adapter.lambda_d.detach())


@pytest.mark.parametrize(("rank", "leading"), [(1, 1), (3, 3), (64, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_folded_layer_is_the_layer_with_its_diagonals(rank: int, leading: int, bias: bool) -> None:
    layer, x = low_rank(bias=bias), torch.randn(7, 12, dtype=torch.float64)
    adapter, scaling = with_diagonals(layer, rank)
    b, d = scaling.b.double().diag(), scaling.d.double().diag()
    A, B = layer.A.weight, layer.B.weight
    by_the_paper = layer(x) + x @ (b @ B[:, :leading] @ d @ A[:leading]).T
    torch.testing.assert_close(adapter(x), by_the_paper, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded(layer, scaling)(x), by_the_paper, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(layer(x), by_the_paper, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_only_the_leading_columns_of_b_change_and_are_rounded_once(dtype: torch.dtype) -> None:
    layer = low_rank(dtype)
    before, (_, scaling) = copy.deepcopy(layer.state_dict()), with_diagonals(layer, 3)
    found, whole = folded(layer, scaling), folded(copy.deepcopy(layer).double(), scaling)
    assert (found.rank, found.A.weight.dtype) == (5, dtype)
    assert torch.equal(found.B.weight, whole.B.weight.to(dtype))
    assert torch.equal(found.B.weight[:, 3:], layer.B.weight[:, 3:])
    assert torch.equal(found.A.weight, layer.A.weight)
    assert torch.equal(found.B.bias, layer.B.bias)
    assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_dropout_takes_from_the_update_alone() -> None:
    layer, x = low_rank(), torch.randn(7, 12, dtype=torch.float64)
    adapter = Diagonals(layer, Plan(method="diagonals", dropout=0.5)).train()
    assert torch.equal(adapter(x), layer(x))
    randomize({"layer": adapter})
    assert not torch.equal(adapter(x), adapter(x))


@pytest.mark.parametrize("training", [False, True])
def test_at_the_start_the_model_computes_what_it_computed(
    mixed: PreTrainedModel, logits: Forward, plan: Plan, training: bool
) -> None:
    before = logits(mixed.train(training))
    with attached(mixed, plan):
        assert torch.equal(logits(mixed), before)


def test_only_the_diagonals_of_low_rank_layers_learn_and_in_float32(mixed: PreTrainedModel, plan: Plan) -> None:
    layers = low_rank_layers(mixed.bfloat16())
    with attached(mixed, plan) as adapters:
        learning = {name: parameter for name, parameter in mixed.named_parameters() if parameter.requires_grad}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors_of(adapters).items()}
    assert learning.keys() == {f"{name}.lambda_{each}" for name in layers for each in "bd"} == shapes.keys()
    assert {parameter.dtype for parameter in learning.values()} == {torch.float32}
    for name, layer in layers.items():
        assert (shapes[f"{name}.lambda_b"], shapes[f"{name}.lambda_d"]) == ((layer.out_features,), (3,))


def test_every_diagonal_has_a_gradient_after_the_first_step(mixed: PreTrainedModel, plan: Plan) -> None:
    with attached(mixed, plan) as adapters:
        learning = [parameter for each in adapters.values() for parameter in each.learnt.values()]
        optimizer = torch.optim.SGD(learning, lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            mixed(torch.arange(12)[None], labels=torch.arange(12)[None]).loss.backward()
            optimizer.step()
        assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in learning)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_moe"])
def test_the_merged_model_is_the_adapted_one_and_only_b_differs(
    tiny: Callable[..., PreTrainedModel],
    compress: Callable[..., PreTrainedModel],
    logits: Forward,
    ranks: Callable[[PreTrainedModel], dict[str, int]],
    plan: Plan,
    family: str,
) -> None:
    model = compress(tiny(family), keep=0.3)
    before, count, was = copy.deepcopy(model.state_dict()), model.num_parameters(), ranks(model)
    with attached(model, plan) as adapters:
        randomize(adapters)
        adapted, learnt = logits(model), tensors_of(adapters)
    merge_(model, updates_of(learnt, plan))
    torch.testing.assert_close(logits(model), adapted, rtol=1e-3, atol=1e-3)
    assert (ranks(model), model.num_parameters()) == (was, count)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before.pop(name))}
    assert changed == {f"{name}.B.weight" for name in was}
    assert not before


def test_nothing_is_left_behind(mixed: PreTrainedModel, plan: Plan) -> None:
    modules = dict(mixed.named_modules())
    with contextlib.suppress(KeyboardInterrupt), attached(mixed, plan) as adapters:
        randomize(adapters)
        raise KeyboardInterrupt
    assert dict(mixed.named_modules()) == modules


@pytest.mark.parametrize("pruned", [False, True])
def test_a_model_without_low_rank_layers_is_refused(
    tiny: Callable[..., PreTrainedModel], examples: Examples, plan: Plan, tmp_path: Path, pruned: bool
) -> None:
    model = tiny()
    if pruned:
        model.model.layers[0].mlp.gate_proj = nn.Linear(32, 40, bias=False)
    message = (
        r"recovery.method is 'diagonals', but none of the 14 linears in the decoder blocks of this LlamaForCausalLM is "
        r"low-rank, expected at least one: compress it to low rank, or set recovery.method to lora"
    )
    with pytest.raises(UsageError, match=message):
        recover_(model, examples, examples, plan, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_overflow_is_an_error_and_leaves_the_model_alone(mixed: PreTrainedModel) -> None:
    model = mixed.half()
    before, names = copy.deepcopy(model.state_dict()), list(low_rank_layers(model))
    updates = {name: Scaling(torch.ones(model.get_submodule(name).out_features), torch.ones(3)) for name in names}
    updates[names[-1]] = replace(updates[names[-1]], d=torch.full((3,), 1e30))
    with pytest.raises(NumericalError, match=rf"{names[-1]} has \d+ non-finite entries .*float16.* lower recovery"):
        merge_(model, updates)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float32, "float32"), (torch.bfloat16, "float32"), (torch.bfloat16, "bfloat16")],
)
def test_training_lowers_the_loss_of_the_merged_model(
    low: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    dtype: torch.dtype,
    precision: str,
) -> None:
    plan, count = replace(plan, steps=20, rate=0.1, evaluate_every=10, precision=precision), low.num_parameters()
    curve = recover_(low.to(dtype), examples, validation, plan, folder=tmp_path)
    assert curve.after < curve.before - 0.2
    with torch.no_grad():
        ids = validation.ids.reshape(len(validation), -1)
        assert float(low(ids, labels=ids).loss) == pytest.approx(
            curve.after, rel=1e-4 if dtype == torch.float32 else 0.03
        )
    assert ({parameter.dtype for parameter in low.parameters()}, low.num_parameters()) == ({dtype}, count)


def test_a_recovered_model_is_saved_and_loaded_and_needs_no_peft(
    mixed: PreTrainedModel,
    words: PreTrainedTokenizerFast,
    logits: Forward,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    monkeypatch.setitem(sys.modules, "mgaa.recovery.lora", None)  # importing it is an error
    unmerged = logits(mixed)
    assert recover_(mixed, examples, validation, plan, folder=tmp_path / "recovery").best > 0
    before = logits(mixed)
    assert not torch.equal(before, unmerged)
    mgaa.save(mixed, words, tmp_path / "saved")
    assert torch.equal(logits(mgaa.load(tmp_path / "saved", device="cpu")[0]), before)
