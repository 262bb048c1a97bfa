"""Attachment of adapters to the linears of a model, and their removal.

Every place is known, so we replace modules ourselves, as everywhere in mgaa, and undoing it leaves no trace.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from mgaa.errors import InputError, UsageError
from mgaa.models.architecture_schema import has_module
from mgaa.models.architectures import architecture_of, decoder_blocks
from mgaa.models.lowrank import LowRankLinear
from mgaa.recovery.adapters import Adapter
from mgaa.recovery.plan import Plan


def target_names(model: PreTrainedModel, plan: Plan) -> list[str]:
    """List the linears that get an adapter, in the order of the modules.

    Raises:
        InputError: the architecture has no entry, or its blocks hold no linear.
        UsageError: the method is diagonals, and no linear is low-rank.
    """
    blocks, entry = decoder_blocks(model), architecture_of(model.config)
    untouched = {
        id(block.get_submodule(name)) for block in blocks for name in entry.untouched if has_module(block, name)
    }
    inside = {id(module) for module in blocks.modules()} - untouched
    modules = {name: module for name, module in model.named_modules() if id(module) in inside}
    low_rank = [name for name, module in modules.items() if isinstance(module, LowRankLinear)]
    factors = {f"{name}.{factor}" for name in low_rank for factor in "AB"}
    plain = {name for name, module in modules.items() if isinstance(module, nn.Linear)} - factors
    if not low_rank and not plain:
        raise InputError(
            f"the decoder blocks of this {type(model).__name__} hold no linear layer: split the model first "
            "(mgaa.models.fused.unfuse_)"
        )
    if plan.method == "diagonals":
        if not low_rank:
            raise UsageError(
                f"recovery.method is 'diagonals', but none of the {len(plain)} linears in the decoder blocks of this "
                f"{type(model).__name__} is low-rank, expected at least one: compress it to low rank, or set "
                "recovery.method to lora, which tunes dense and pruned linears too"
            )
        return low_rank
    whole = set(low_rank) if plan.tune == "product" else factors
    return [name for name in modules if name in whole | plain]


@contextmanager
def attach_adapters(model: PreTrainedModel, plan: Plan) -> Iterator[dict[str, Adapter]]:
    """Within this context, the targets have adapters, and only these learn; afterwards the model is in its former state.

    Initially the adapters change nothing.
    """
    learns = {parameter: parameter.requires_grad for parameter in model.parameters()}
    layers = {name: model.get_submodule(name) for name in target_names(model, plan)}
    model.requires_grad_(False)
    try:
        adapters = {name: _make_adapter(layer, plan).train(layer.training) for name, layer in layers.items()}
        for name, adapter in adapters.items():
            model.set_submodule(name, adapter)
        yield adapters
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        for parameter, learned in learns.items():
            parameter.requires_grad_(learned)


def _make_adapter(layer: nn.Module, plan: Plan) -> Adapter:
    """Make the adapter of the plan; only the required kind is imported."""
    if plan.method == "diagonals":
        from mgaa.recovery.diagonals import Diagonals

        assert isinstance(layer, LowRankLinear)
        return Diagonals(layer, plan)
    from mgaa.recovery.lora import LoraAdapter  # imports peft

    return LoraAdapter(layer, plan)
