"""peft's LoRA for the linears of a compressed model, by the names that they have in a dense one.

    import mgaa.lora  # teaches peft the layers of mgaa

    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))

peft wraps an `nn.Linear` and refuses layers that it does not know. Once this module is imported, it treats a `LowRankLinear` and a layer
that was split (`mgaa.models.fused.FusedLinear`) as what they stand for, one linear: `y = B (A x) + b + s L_B L_A x`. So module names from
any tutorial, peft's defaults for a family, and adapters that were trained on the dense model fit. Merged, the update becomes part of the
factors, `B' = [B, s L_B]` and `A' = [A; L_A]`, exactly (`mgaa.recovery.merging`); `mgaa.save` writes the new ranks. Without this module
peft can still tune `A` and `B` separately, as `target_modules="all-linear"` does.

Variants that need the dense matrix (DoRA, PiSSA and the like) are refused: it does not exist. Importing this module imports peft.
"""

from typing import Any

from peft import LoraConfig, LoraModel
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from mgaa.errors import NumericalError, UsageError
from mgaa.models.fused import FusedLinear, rows_of
from mgaa.models.lowrank import LowRankLinear, non_finite
from mgaa.recovery.merging import Update, merged

_INITIAL = (True, False, "gaussian")
"""Supported initialisations of the update: those that do not depend on the weight."""


class LowRankLoraLayer(lora.Linear):  # type: ignore[misc]
    """peft's LoRA layer around a layer of mgaa."""

    def __init__(self, layer: nn.Module, adapter_name: str, config: LoraConfig, **options: Any) -> None:
        self.base_layer: nn.Module
        self._before: list[nn.Module] = []
        super().__init__(layer, adapter_name, config=config, **options)

    @property
    def lora_variants(self) -> dict[tuple[str, ...], None]:
        """Return no variants: they read or change the dense matrix."""
        return {(): None}

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: LoraConfig, **options: Any) -> None:
        """Add an adapter.

        Raises:
            UsageError: its initialisation needs the dense matrix, or it has a bias.
        """
        if config.init_lora_weights not in _INITIAL or config.lora_bias:
            raise UsageError(
                f"init_lora_weights is {config.init_lora_weights!r} and lora_bias is {config.lora_bias} on a low-rank layer, which has "
                "no dense matrix to start from: leave both at peft's defaults, or fold the model first (mgaa.densify)"
            )
        super().update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config, **options)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the layer, whose rank grows by theirs; it becomes dense where that is smaller.

        Raises:
            NumericalError: `safe_merge` is set and an entry is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.lora_A:
                continue
            made = _merge_update(
                self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
            )
            if safe_merge and any(non_finite(parameter) for parameter in made.parameters()):
                raise NumericalError(
                    f"the adapter {name!r} yields entries that are not finite: train it again at a lower rate"
                )
            self._before.append(self.base_layer)
            self.base_layer = made
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Restore the layer to its state before the first adapter was merged."""
        if self._before:
            self.base_layer = self._before[0]
        self._before.clear()
        self.merged_adapters.clear()

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        linears: list[Any] = (
            [module.get_submodule(name) for name in module.names] if isinstance(module, FusedLinear) else [module]
        )
        return int(linears[0].in_features), sum(int(linear.out_features) for linear in linears)


def _merge_update(layer: nn.Module, A: Tensor, B: Tensor, scale: float) -> nn.Module:
    """Return the layer with an update merged."""
    if not isinstance(layer, FusedLinear):
        return merged(layer, Update(A.detach(), B.detach(), scale), dense=layer.bias is None)
    parts = {
        name: _merge_update(layer.get_submodule(name), A, rows, scale)
        for name, rows in rows_of(layer, B.detach()).items()
    }
    return FusedLinear(parts, layer.groups).train(layer.training)


def _register_with_peft() -> None:
    """Register the layers of mgaa with peft."""
    plain = LoraModel._create_new_module
    if getattr(plain, "knows_mgaa", False):
        return

    def create(lora_config: LoraConfig, adapter_name: str, target: nn.Module, **options: Any) -> nn.Module:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if isinstance(base, LowRankLinear | FusedLinear) and options.get("parameter_name") is None:
            options.pop("parameter_name", None)
            return LowRankLoraLayer(target, adapter_name, lora_config, **options)
        made: nn.Module = plain(lora_config, adapter_name, target, **options)
        return made

    create.knows_mgaa = True  # type: ignore[attr-defined]
    LoraModel._create_new_module = staticmethod(create)


_register_with_peft()
