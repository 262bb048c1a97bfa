"""Adapters sit beside the linears of the blocks, alone learn, and leave no trace."""

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.errors import InputError
from mgaa.models.lowrank import LowRankLinear, low_rank_layers
from mgaa.recovery import Plan
from mgaa.recovery.adapters import Adapter, load_adapters, tensors_of
from mgaa.recovery.attach import attach_adapters, target_names
from mgaa.recovery.lora import LoraAdapter
from mgaa.recovery.merging import merge_, updates_of
from mgaa.recovery.plan import WAYS
from tests.mgaa.conftest import FAMILIES

Build = Callable[..., PreTrainedModel]
Forward = Callable[[PreTrainedModel], Tensor]


def randomize(adapters: dict[str, Adapter]) -> None:
    generator = torch.Generator().manual_seed(2)
    load_adapters(
        adapters, {name: 0.1 * torch.randn(x.shape, generator=generator) for name, x in tensors_of(adapters).items()}
    )


@pytest.mark.parametrize("tune", WAYS)
def test_fresh_adapters_change_nothing(mixed: PreTrainedModel, logits: Forward, plan: Plan, tune: str) -> None:
    before = logits(mixed)
    with attach_adapters(mixed, Plan(tune=tune)):
        assert torch.equal(logits(mixed), before)


@pytest.mark.parametrize("tune", WAYS)
def test_the_merged_model_is_the_adapted_one(mixed: PreTrainedModel, logits: Forward, tune: str) -> None:
    plan, before = Plan(tune=tune, rank=2), logits(mixed)
    with attach_adapters(mixed, plan) as adapters:
        randomize(adapters)
        adapted, learnt = logits(mixed), tensors_of(adapters)
    assert not torch.allclose(adapted, before, atol=0.1)
    merge_(mixed, updates_of(learnt, plan))
    torch.testing.assert_close(logits(mixed), adapted, rtol=1e-4, atol=1e-4)


def test_products_gain_the_rank_of_the_update(
    mixed: PreTrainedModel, ranks: Callable[[PreTrainedModel], dict[str, int]]
) -> None:
    before, plan = ranks(mixed), Plan(rank=2)
    with attach_adapters(mixed, plan) as adapters:
        randomize(adapters)
        learnt = tensors_of(adapters)
    merge_(mixed, updates_of(learnt, plan))
    assert ranks(mixed) == {name: rank + 2 for name, rank in before.items()}


def test_factors_keep_every_rank_and_every_parameter(
    mixed: PreTrainedModel, ranks: Callable[[PreTrainedModel], dict[str, int]]
) -> None:
    before, count, plan = ranks(mixed), mixed.num_parameters(), Plan(tune="factors")
    with attach_adapters(mixed, plan) as adapters:
        randomize(adapters)
        learnt = tensors_of(adapters)
    merge_(mixed, updates_of(learnt, plan))
    assert ranks(mixed) == before
    assert mixed.num_parameters() == count


@pytest.mark.parametrize("tune", WAYS)
def test_only_adapters_learn_and_in_float32(mixed: PreTrainedModel, tune: str) -> None:
    with attach_adapters(mixed.bfloat16(), Plan(tune=tune)):
        learning = {name: parameter for name, parameter in mixed.named_parameters() if parameter.requires_grad}
        assert all(".lora_A." in name or ".lora_B." in name for name in learning)
        assert {parameter.dtype for parameter in learning.values()} == {torch.float32}
        blocks = {name.split(".lora_")[0] for name in learning}
    assert blocks == set(target_names(mixed, Plan(tune=tune)))


@pytest.mark.parametrize("tune", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_linears_of_every_family_are_tuned(
    tiny: Build, compress: Build, logits: Forward, family: str, tune: str
) -> None:
    model = compress(tiny(family), keep=0.3)
    layers = low_rank_layers(model)
    expected = set(layers) if tune == "product" else {f"{name}.{factor}" for name in layers for factor in "AB"}
    plan = Plan(tune=tune, rank=2)
    with attach_adapters(model, plan) as adapters:
        assert set(adapters) == expected
        randomize(adapters)
        adapted, learnt = logits(model), tensors_of(adapters)
    merge_(model, updates_of(learnt, plan))
    torch.testing.assert_close(logits(model), adapted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tune", WAYS)
def test_nothing_is_left_behind(mixed: PreTrainedModel, tune: str) -> None:
    mixed.model.norm.weight.requires_grad_(True)
    modules, state = dict(mixed.named_modules()), copy.deepcopy(mixed.state_dict())
    attributes = set(mixed.__dict__)
    with contextlib.suppress(KeyboardInterrupt), attach_adapters(mixed, Plan(tune=tune)) as adapters:
        randomize(adapters)
        raise KeyboardInterrupt
    assert dict(mixed.named_modules()) == modules
    assert set(mixed.__dict__) == attributes
    assert [name for name, parameter in mixed.named_parameters() if parameter.requires_grad] == ["model.norm.weight"]
    assert all(torch.equal(tensor, state[name]) for name, tensor in mixed.state_dict().items())


def test_an_adapter_beside_a_low_rank_layer_is_no_cause_for_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    LoraAdapter(LowRankLinear(12, 20, 3), Plan())
    assert not recwarn.list


def test_blocks_without_linears_are_refused(tiny: Build) -> None:
    model = tiny("gpt2")  # its own Conv1D layers
    with pytest.raises(InputError, match="hold no linear layer: split the model first"):
        target_names(model, Plan())


def test_linears_outside_the_blocks_are_left_alone(tiny: Build) -> None:
    model = tiny(tie_word_embeddings=False)
    assert isinstance(model.lm_head, nn.Linear)
    assert "lm_head" not in target_names(model, Plan())
