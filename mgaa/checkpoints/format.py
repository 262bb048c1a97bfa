"""The checkpoint format, taught to transformers: importing this module is all it takes.

A compressed checkpoint is an ordinary Hugging Face folder whose config.json says which linears are low-rank:

    "quantization_config": {"quant_method": "mgaa", "version": 1,
                            "modules": {"model.layers.0.self_attn.q_proj": {"rank": 40, "bias": true}, ...}}

FFNs that were pruned add their widths, one per block, null where it is the config's: "widths": [410, 409, null, ...].

transformers builds the dense skeleton on the meta device, asks the quantizer registered here to take fused layers apart
(fused.py), to narrow the FFNs (widths.py) and to put `LowRankLinear` in the places of `modules`, then fills in the
tensors: no pickle, no remote code, bit-equal weights. After that nothing is special about the model: what transformers
forbids for integer weights (`.float()`, training) is allowed.

Without this module transformers would only warn about the unknown method, and put random matrices where it finds none.
Two things prevent it. `mgaa.save` writes `NOTICE` into config.json as `transformers_weights`, the name of the file to
load; transformers quotes it in the ValueError that it raises before it builds anything, and the quantizer removes it.
And every low-rank layer carries a mark under the name of the dense weight (lowrank.py; the experts of Mixtral, whose
files name them otherwise, are the exception), so that whatever drops the
notice (`save_pretrained`, an edited config) or never looks at it (`load_state_dict`, other loaders) meets a size
mismatch.

transformers brings this module with its table of formats, once `import mgaa` has asked for it (`mgaa/__init__.py`), while its own modules
and some of this package may be half imported: so whatever needs models is imported inside functions.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    AutoHfQuantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from mgaa.errors import InputError, UsageError
from mgaa.models.mark import METHOD, NOTICE

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from mgaa.models.lowrank import LowRankLinear

VERSION = 1


class LowRankConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """`quantization_config` of a compressed model.

    `modules` maps a linear's dotted name to its `rank` and `bias`; `widths` are those of the pruned FFNs, and no key where there are none.
    """

    def __init__(
        self,
        modules: object = None,
        widths: object = None,
        version: int = VERSION,
        quant_method: str = METHOD,
        **unknown: object,
    ) -> None:
        if version != VERSION or unknown:
            raise InputError(
                f"quantization_config has version {version} and the further keys {sorted(unknown)}; this mgaa reads "
                f"version {VERSION} without further keys: install the mgaa that wrote the checkpoint"
            )
        if not isinstance(modules, Mapping) or not all(isinstance(shape, Mapping) for shape in modules.values()):
            raise InputError(
                f"quantization_config has the modules {modules!r}, expected a rank and a bias for each name: "
                "config.json was edited or is damaged; restore it from the compression run"
            )
        self.quant_method = quant_method
        self.version = version
        self.modules = {name: dict(shape) for name, shape in modules.items()}
        if widths is not None:
            self.widths = widths


class LowRankQuantizer(HfQuantizer):  # type: ignore[misc]
    """Swaps the linears for low-rank ones between the building of the model and the loading of its weights."""

    requires_calibration = True
    quantization_config: LowRankConfig

    def update_attn_implementation(self, config: "PreTrainedConfig") -> "PreTrainedConfig":
        """Called once the method is known and before files are looked for: here the notice has done its work."""
        if getattr(config, "transformers_weights", None) == NOTICE:
            del config.transformers_weights
        return config

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **_: Any) -> "PreTrainedModel":
        from mgaa.models.architectures import has_entry, parts_with
        from mgaa.models.fused import unfuse_
        from mgaa.models.widths import narrow_

        if has_entry(model.config):
            unfuse_(model, parts_with(model, self.quantization_config.modules))
        if (given := getattr(self.quantization_config, "widths", None)) is not None:
            narrow_(model, given)
        linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        for name, shape in self.quantization_config.modules.items():
            place = _place(name, linears, model)
            model.set_submodule(place, _layer(name, shape, linears[place]))
        return model

    def _process_model_after_weight_loading(self, model: "PreTrainedModel", **_: Any) -> "PreTrainedModel":
        from transformers import PreTrainedModel

        del model.hf_quantizer, model.quantization_method, model.is_quantized
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.config.__dict__.pop("_is_quantized", None)
        return model

    def update_weight_conversions(self, weight_conversions: list[Any], model: "PreTrainedModel") -> list[Any]:
        """The files hold every expert by itself, as the model now does: nothing is stacked on the way in."""
        from transformers.core_model_loading import WeightConverter

        return [conversion for conversion in weight_conversions if not isinstance(conversion, WeightConverter)]

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` may write it: yes, as it is."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters and factors may be trained: yes."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether `torch.compile` takes it: yes."""
        return True


def describe(model: "PreTrainedModel") -> None:
    """Write the model's low-rank layers and narrow FFNs into its config, or remove that entry where there are none."""
    from mgaa.models.lowrank import low_rank_layers
    from mgaa.models.widths import widths

    modules = {
        name: {"rank": layer.rank, "bias": layer.B.bias is not None} for name, layer in low_rank_layers(model).items()
    }
    narrow = widths(model)
    if modules or narrow:
        model.config.quantization_config = LowRankConfig(modules, narrow or None)
    elif is_described(model):
        del model.config.quantization_config


def is_described(model: "PreTrainedModel") -> bool:
    """Whether the config says that the model is compressed."""
    return isinstance(getattr(model.config, "quantization_config", None), LowRankConfig)


def _place(name: str, linears: Mapping[str, nn.Linear], model: "PreTrainedModel") -> str:
    """Where the linear is in this class: `AutoModel` lacks the prefix under which a causal model holds its decoder."""
    for candidate in (name, name.removeprefix(f"{model.base_model_prefix}.")):
        if candidate in linears:
            return candidate
    raise InputError(
        f"quantization_config names {name!r}, which is no linear of {type(model).__name__}: "
        "config.json was edited or belongs to another model; restore it from the compression run"
    )


def _layer(name: str, shape: Mapping[str, int | bool], linear: nn.Linear) -> "LowRankLinear":
    from mgaa.models.lowrank import LowRankLinear

    m, n, rank = linear.out_features, linear.in_features, shape.get("rank")
    if not isinstance(rank, int) or not 1 <= rank <= min(m, n):
        raise InputError(
            f"quantization_config gives {name} the rank {rank!r}, expected 1 to {min(m, n)}: "
            "config.json was edited or is damaged; restore it from the compression run"
        )
    weight = linear.weight
    return LowRankLinear(n, m, rank, bias=bool(shape.get("bias")), device=weight.device, dtype=weight.dtype)


def _refuse_second(plain: Any) -> Any:
    """transformers' union of the method of a model with that of the call, which for one of ours says what to do instead."""

    def merge(cls: type, own: Any, given: Any) -> Any:
        method = own.get("quant_method") if isinstance(own, Mapping) else getattr(own, "quant_method", None)
        if method == METHOD and given is not None and not isinstance(given, LowRankConfig):
            raise UsageError(
                f"quantization_config is a {type(given).__name__}, but the model is compressed by mgaa, and transformers takes one "
                "method while it loads: load it without, and quantise it in memory (torchao's quantize_, optimum.quanto's quantize), or "
                "fold it by mgaa.densify_folder and quantise that"
            )
        return plain(cls, own, given)

    merge.knows_mgaa = True  # type: ignore[attr-defined]
    return classmethod(merge)


_merge = AutoHfQuantizer.merge_quantization_configs.__func__
if not hasattr(_merge, "knows_mgaa"):
    AutoHfQuantizer.merge_quantization_configs = _refuse_second(_merge)

# Assigned rather than registered through the decorators, which refuse the second import of a reloaded module.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = LowRankConfig
AUTO_QUANTIZER_MAPPING[METHOD] = LowRankQuantizer
