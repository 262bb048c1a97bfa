"""What learns beside the linears of a model: put in, read out, taken away.

An adapter stands in the place of a linear, holds it, and adds an update to what it computes. The linear stays frozen, the few
tensors of the update learn. By `Plan.method` and `Plan.tune`:

    lora, product     beside every linear as a whole: `y = B (A x) + b + s L_B L_A x`           lora.py
    lora, factors     beside each of `A` and `B` of the low-rank ones, and beside all others
    diagonals         beside the low-rank ones: `y = B (A x) + b + Λ_b B_r Λ_d A_r x`           diagonals.py

Embeddings, norms, routers and the head are frozen. Every place is known, so the swap is ours, as everywhere in mgaa, and undoing it
leaves no trace.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.errors import InputError, UsageError
from mgaa.models.architecture_schema import has
from mgaa.models.architectures import architecture_of, decoder_blocks
from mgaa.models.lowrank import LowRankLinear
from mgaa.recovery.plan import Plan


class Adapter(nn.Module, ABC):
    """A linear and its update."""

    @property
    @abstractmethod
    def learnt(self) -> dict[str, nn.Parameter]:
        """The tensors of the update, by a name without dots."""


def targets(model: PreTrainedModel, plan: Plan) -> list[str]:
    """The names of the linears that get an adapter, in the order of the modules.

    Raises:
        InputError: the architecture has no entry, or its blocks hold no linear.
        UsageError: diagonals, and no linear is low-rank.
    """
    blocks, entry = decoder_blocks(model), architecture_of(model.config)
    untouched = {id(block.get_submodule(name)) for block in blocks for name in entry.untouched if has(block, name)}
    inside = {id(module) for module in blocks.modules()} - untouched
    found = {name: module for name, module in model.named_modules() if id(module) in inside}
    low_rank = [name for name, module in found.items() if isinstance(module, LowRankLinear)]
    factors = {f"{name}.{factor}" for name in low_rank for factor in "AB"}
    plain = {name for name, module in found.items() if isinstance(module, nn.Linear)} - factors
    if not low_rank and not plain:
        raise InputError(
            f"the decoder blocks of this {type(model).__name__} hold no linear layer: take the model apart first "
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
    return [name for name in found if name in whole | plain]


@contextmanager
def attached(model: PreTrainedModel, plan: Plan) -> Iterator[dict[str, Adapter]]:
    """Adapters beside the targets, the only part that learns, inside this context; after it the model is as it was.

    They start as no update at all.
    """
    learns = {parameter: parameter.requires_grad for parameter in model.parameters()}
    layers = {name: model.get_submodule(name) for name in targets(model, plan)}
    model.requires_grad_(False)
    try:
        adapters = {name: _beside(layer, plan).train(layer.training) for name, layer in layers.items()}
        for name, adapter in adapters.items():
            model.set_submodule(name, adapter)
        yield adapters
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        for parameter, learned in learns.items():
            parameter.requires_grad_(learned)


def tensors_of(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """What was learnt so far, by name, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _parts(adapters)}


@torch.no_grad()
def fill(adapters: Mapping[str, Adapter], tensors: Mapping[str, Tensor]) -> None:
    """Go on from what `tensors_of` gave."""
    for name, tensor in _parts(adapters):
        tensor.copy_(tensors[name])


def _beside(layer: nn.Module, plan: Plan) -> Adapter:
    """The adapter of the plan; of the two kinds only that one is imported."""
    if plan.method == "diagonals":
        from mgaa.recovery.diagonals import Diagonals

        assert isinstance(layer, LowRankLinear)
        return Diagonals(layer, plan)
    from mgaa.recovery.lora import Beside  # imports peft

    return Beside(layer, plan)


def _parts(adapters: Mapping[str, Adapter]) -> Iterator[tuple[str, nn.Parameter]]:
    return ((f"{name}.{part}", tensor) for name, each in adapters.items() for part, tensor in each.learnt.items())
