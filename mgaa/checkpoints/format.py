"""The checkpoint format, registered with transformers on import of this module.

A compressed checkpoint is an ordinary Hugging Face folder whose config.json names the low-rank linears:

    "quantization_config": {"quant_method": "mgaa", "version": 1,
                            "modules": {"model.layers.0.self_attn.q_proj": {"rank": 40, "bias": true}, ...}}

Pruned FFNs add their widths, one per block, null where it is the config's: "widths": [410, 409, null, ...].

transformers builds the dense skeleton on the meta device, lets the quantizer registered here split fused layers (`mgaa.models.fused`),
narrow the FFNs (`mgaa.models.widths`) and replace the linears in `modules` by `LowRankLinear`, then loads the tensors: no pickle, no remote
code, bit-equal weights. After that the model is like any other: operations that transformers forbids for integer weights (`.float()`,
training) are allowed.

Without this module transformers would only warn about the unknown method, and fill missing matrices with random numbers. Two things prevent
it. `mgaa.save` writes `NOTICE` into config.json as `transformers_weights`, the name of the file to load; transformers quotes it in the
ValueError that it raises before it builds anything, and the quantizer removes it. And every low-rank layer carries a mark under the name of
the dense weight (`mgaa.models.lowrank`; the experts of Mixtral, which have other names in the files, are the exception), so that any loader
that drops the notice (`save_pretrained`, an edited config) or never reads it (`load_state_dict`, other loaders) fails with a size mismatch.

transformers imports this module with its table of formats, once `import mgaa` has registered it (`mgaa/__init__.py`), while its own modules
and some of this package may be half imported: so everything that needs models is imported inside functions.
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

    `modules` maps a linear's dotted name to its `rank` and `bias`; `widths` are those of the pruned FFNs, absent where there are none.
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
    """Replaces linears by low-rank ones after the model is built and before its weights are loaded."""

    requires_calibration = True
    quantization_config: LowRankConfig

    def update_attn_implementation(self, config: "PreTrainedConfig") -> "PreTrainedConfig":
        """Remove the notice: this is called once the method is known and before transformers looks for files."""
        if getattr(config, "transformers_weights", None) == NOTICE:
            del config.transformers_weights
        return config

    def _process_model_before_weight_loading(self, model: "PreTrainedModel", **_: Any) -> "PreTrainedModel":
        from mgaa.models.architectures import has_entry, parts_with
        from mgaa.models.fused import unfuse_
        from mgaa.models.widths import narrow_

        if has_entry(model.config):
            unfuse_(model, parts_with(model, self.quantization_config.modules))
        if (widths := getattr(self.quantization_config, "widths", None)) is not None:
            narrow_(model, widths)
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
        """Return no conversions: files and model both hold every expert separately, so nothing is stacked on loading."""
        from transformers.core_model_loading import WeightConverter

        return [conversion for conversion in weight_conversions if not isinstance(conversion, WeightConverter)]

    def is_serializable(self) -> bool:
        """True: `save_pretrained` may write it unchanged."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: adapters and factors may be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: `torch.compile` supports it."""
        return True


def describe(model: "PreTrainedModel") -> None:
    """Write the model's low-rank layers and narrow FFNs into its config, or remove that entry where there are none."""
    from mgaa.models.lowrank import low_rank_layers
    from mgaa.models.widths import ffn_widths

    modules = {
        name: {"rank": layer.rank, "bias": layer.B.bias is not None} for name, layer in low_rank_layers(model).items()
    }
    narrow = ffn_widths(model)
    if modules or narrow:
        model.config.quantization_config = LowRankConfig(modules, narrow or None)
    elif is_described(model):
        del model.config.quantization_config


def is_described(model: "PreTrainedModel") -> bool:
    """Return whether the config describes the model as compressed."""
    return isinstance(getattr(model.config, "quantization_config", None), LowRankConfig)


def _place(name: str, linears: Mapping[str, nn.Linear], model: "PreTrainedModel") -> str:
    """Return the linear's name in this class: `AutoModel` lacks the prefix under which a causal model holds its decoder."""
    for candidate in (name, name.removeprefix(f"{model.base_model_prefix}.")):
        if candidate in linears:
            return candidate
    raise InputError(
        f"quantization_config names {name!r}, which is not a linear of {type(model).__name__}: "
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
    """Wrap transformers' merge of a model's method with that of the call, so that for our models the error names the remedy."""

    def merge(cls: type, own: Any, called: Any) -> Any:
        method = own.get("quant_method") if isinstance(own, Mapping) else getattr(own, "quant_method", None)
        if method == METHOD and called is not None and not isinstance(called, LowRankConfig):
            raise UsageError(
                f"quantization_config is a {type(called).__name__}, but the model is compressed by mgaa, and transformers takes one "
                "method while it loads: load it without, and quantise it in memory (torchao's quantize_, optimum.quanto's quantize), or "
                "fold it by mgaa.densify_folder and quantise that"
            )
        return plain(cls, own, called)

    merge.knows_mgaa = True  # type: ignore[attr-defined]
    return classmethod(merge)


_merge = AutoHfQuantizer.merge_quantization_configs.__func__
if not hasattr(_merge, "knows_mgaa"):
    AutoHfQuantizer.merge_quantization_configs = _refuse_second(_merge)

# Assigned rather than registered through the decorators, which refuse the second import of a reloaded module.
AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = LowRankConfig
AUTO_QUANTIZER_MAPPING[METHOD] = LowRankQuantizer
