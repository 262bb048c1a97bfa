"""LoRA on a linear (Hu et al. 2021, arXiv 2106.09685), with peft's layer: `y = W x + b + s L_B L_A x`.

Only peft's layer is used and not its injection: that finds modules by name, and translates names for the stacked experts of transformers,
while here every place is known (`mgaa.recovery.attach`).

Importing this module imports peft.
"""

from typing import cast

import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import nn

from mgaa.recovery.adapters import Adapter
from mgaa.recovery.plan import Plan

_ADAPTER = "recovery"


class LoraAdapter(lora.Linear, Adapter):  # type: ignore[misc]
    """peft's LoRA layer around an `nn.Linear` or a `LowRankLinear`, whose sizes peft does not know; adapters in float32.

    Initially it changes nothing (`L_B` is zero), with `L_A` drawn from torch's generator.
    """

    def __init__(self, layer: nn.Module, plan: Plan) -> None:
        config = LoraConfig(r=plan.rank, lora_alpha=plan.alpha, lora_dropout=plan.dropout)
        super().__init__(layer, _ADAPTER, config=config, r=plan.rank, lora_alpha=plan.alpha)
        self.inner.to(torch.float32)
        self.outer.to(torch.float32)

    @property
    def inner(self) -> nn.Linear:
        """The inner matrix of the update, rank x inputs."""
        return cast(nn.Linear, cast(nn.ModuleDict, self.lora_A)[_ADAPTER])

    @property
    def outer(self) -> nn.Linear:
        """The outer matrix of the update, outputs x rank."""
        return cast(nn.Linear, cast(nn.ModuleDict, self.lora_B)[_ADAPTER])

    @property
    def learnt(self) -> dict[str, nn.Parameter]:
        """Return `L_A` and `L_B`."""
        return {"lora_A": cast(nn.Parameter, self.inner.weight), "lora_B": cast(nn.Parameter, self.outer.weight)}

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
