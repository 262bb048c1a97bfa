"""LoRA beside the linears of a model (Hu et al. 2021, arXiv 2106.09685), with the layers of peft: put in, read out, taken away.

`product` puts an adapter beside every linear as a whole, `y = B (A x) + b + s L_B L_A x`; `factors` puts one beside each of `A` and `B`.
Linears that are no products (pruned or left dense) get one either way. Embeddings, norms, routers and the head are frozen.

Only peft's layer is used and not its injection: that finds modules by name, and translates names for the stacked experts of transformers,
while here every place is known. So the swap is ours, as everywhere in mgaa, and undoing it leaves no trace.

Importing this file imports peft.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.anatomy import has
from mgaa.architectures import architecture_of, decoder_blocks
from mgaa.errors import InputError
from mgaa.lowrank import LowRankLinear
from mgaa.recovery.plan import Plan

_ADAPTER = "recovery"


class Beside(lora.Linear):  # type: ignore[misc]
    """peft's LoRA layer around an `nn.Linear` or a `LowRankLinear`, whose sizes peft would warn of not knowing; adapters in float32."""

    def __init__(self, layer: nn.Module, plan: Plan) -> None:
        config = LoraConfig(r=plan.rank, lora_alpha=plan.alpha, lora_dropout=plan.dropout)
        super().__init__(layer, _ADAPTER, config=config, r=plan.rank, lora_alpha=plan.alpha)
        self.inner.to(torch.float32)
        self.outer.to(torch.float32)

    @property
    def inner(self) -> nn.Linear:
        """The inner matrix of the update, rank x inputs."""
        return cast(nn.Linear, self.lora_A[_ADAPTER])

    @property
    def outer(self) -> nn.Linear:
        """The outer matrix of the update, outputs x rank."""
        return cast(nn.Linear, self.lora_B[_ADAPTER])

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]


def targets(model: PreTrainedModel, tune: str) -> list[str]:
    """The names of the linears that get an adapter, in the order of the modules.

    Raises:
        InputError: the architecture has no entry, or its blocks hold no linear.
    """
    blocks, entry = decoder_blocks(model), architecture_of(model.config.model_type)
    untouched = {id(block.get_submodule(name)) for block in blocks for name in entry.untouched if has(block, name)}
    inside = {id(module) for module in blocks.modules()} - untouched
    found = {name: module for name, module in model.named_modules() if id(module) in inside}
    low_rank = [name for name, module in found.items() if isinstance(module, LowRankLinear)]
    factors = {f"{name}.{factor}" for name in low_rank for factor in "AB"}
    whole = set(low_rank) if tune == "product" else factors
    plain = {name for name, module in found.items() if isinstance(module, nn.Linear)} - factors
    if not whole | plain:
        raise InputError(
            f"the decoder blocks of this {type(model).__name__} hold no linear layer: take the model apart first "
            "(mgaa.fused.unfuse_)"
        )
    return [name for name in found if name in whole | plain]


@contextmanager
def attached(model: PreTrainedModel, plan: Plan) -> Iterator[dict[str, Beside]]:
    """Adapters beside the targets, the only part that learns, inside this context; after it the model is as it was.

    They start as no update at all (`L_B` is zero), with `L_A` drawn from torch's generator.
    """
    learns = {parameter: parameter.requires_grad for parameter in model.parameters()}
    layers = {name: model.get_submodule(name) for name in targets(model, plan.tune)}
    model.requires_grad_(False)
    try:
        adapters = {name: Beside(layer, plan).train(layer.training) for name, layer in layers.items()}
        for name, adapter in adapters.items():
            model.set_submodule(name, adapter)
        yield adapters
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        for parameter, learned in learns.items():
            parameter.requires_grad_(learned)


def tensors_of(adapters: Mapping[str, Beside]) -> dict[str, Tensor]:
    """What was learnt so far, by name, on the CPU."""
    pairs = ((f"{name}.{part}", linear) for name, each in adapters.items() for part, linear in _parts(each))
    return {name: linear.weight.detach().cpu().contiguous() for name, linear in pairs}


@torch.no_grad()
def fill(adapters: Mapping[str, Beside], tensors: Mapping[str, Tensor]) -> None:
    """Go on from what `tensors_of` gave."""
    for name, each in adapters.items():
        for part, linear in _parts(each):
            linear.weight.copy_(tensors[f"{name}.{part}"])


def _parts(adapter: Beside) -> tuple[tuple[str, nn.Linear], ...]:
    return ("lora_A", adapter.inner), ("lora_B", adapter.outer)
