"""Readers of arguments: models are taken out of their wrappers, and everything that cannot be used is refused before any work.

`coerce_arguments` reads the arguments of a public function, each by its reader, before the function is called, and resets torch to its
defaults for the call (`mgaa.inputs.torch_defaults`). A reader takes the name of an argument and its value, and returns the type that the
function expects; values that it cannot read are refused with the remedy. Readers of models are here, those of tokens in
`mgaa.inputs.token_rows`, those of numbers in `mgaa.inputs.values`.

A model may be compiled (`torch.compile`), or wrapped in a `PeftModel` where it is only run. It may not be distributed by accelerate,
DataParallel or FSDP, quantised, or carry adapters where its own weights are compressed.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from os import PathLike
from pathlib import Path
from types import MethodType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from mgaa.blocks.offload import is_offloaded
from mgaa.errors import InputError, UsageError
from mgaa.inputs.torch_defaults import default_torch_state
from mgaa.models.mark import METHOD
from mgaa.models.processors import Processor

Reader = Callable[[str, Any], Any]
"""Reads an argument, from its name and value."""

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def coerce_arguments(**readers: Reader) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorate a function so that these readers convert the arguments of their names; defaults are not read."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)
        assert readers.keys() <= signature.parameters.keys(), "a reader for an argument that there is not"

        @wraps(function)
        def read(*positional: _P.args, **named: _P.kwargs) -> _R:
            bound = signature.bind(*positional, **named)
            with default_torch_state():
                for name in readers.keys() & bound.arguments.keys():
                    bound.arguments[name] = readers[name](name, bound.arguments[name])
            with default_torch_state(
                *(argument for argument in bound.arguments.values() if isinstance(argument, PreTrainedModel))
            ):
                return function(*bound.args, **bound.kwargs)

        return read

    return decorate


def to_run(name: str, value: Any) -> PreTrainedModel:
    """Read a model that is only run: in memory, or with its blocks offloaded (`mgaa.blocks.offload`).

    Raises:
        UsageError: it is not a model, has no head, or is in a wrapper that has to be removed first.
        InputError: its weights are elsewhere, or of several dtypes.
    """
    model = _check_weights(name, unwrap_model(name, value))
    _check_runs(name, model)
    return model


def to_write(name: str, value: Any) -> PreTrainedModel:
    """Read a model whose own weights are read or written: without adapters, and not quantised; its blocks may be offloaded.

    Raises:
        UsageError, InputError: as `to_run`, or it has adapters or is quantised.
    """
    model = _check_weights(name, unwrap_model(name, value))
    if adapters := [place for place, module in model.named_modules() if _is_of_peft(module)]:
        raise UsageError(
            f"{name} has adapters of peft in {len(adapters)} places ({adapters[0]} is the first), besides its weights: merge them into it, "
            "`model = peft_model.merge_and_unload()`, and give what that returns"
        )
    if method := _quantisation(model):
        raise InputError(
            f"{name} is quantised ({method}): start from the unquantised model, and quantise the result afterwards"
        )
    return model


def to_change(name: str, value: Any) -> PreTrainedModel:
    """Read a model that is measured, copied and changed: as `to_write`, in memory, with its head and the forward of its class.

    Raises:
        UsageError, InputError: as `to_write`, or its blocks are offloaded, or it has another forward.
    """
    model = to_write(name, value)
    _check_runs(name, model)
    if is_offloaded(model):
        raise UsageError(
            f"the blocks of the {name} are offloaded to their files and cannot be changed: load it without stream, or compress it by "
            "python -m flows.compress, which goes block by block"
        )
    for place, module in model.named_modules():
        if _is_replaced(module):
            raise UsageError(
                f"{name} has a forward other than that of its class in {place or 'itself'}, which a copy of the model would not follow: "
                "take it off (`del module.forward`), or change the class"
            )
    return model


def to_densify(name: str, value: Any) -> PreTrainedModel:
    """Read a model whose low-rank layers are to be folded in memory.

    Raises:
        UsageError, InputError: as `to_write`, or its blocks are offloaded.
    """
    model = to_write(name, value)
    if is_offloaded(model):
        raise UsageError(
            f"the blocks of the {name} are offloaded to their files: fold it from folder to folder, `mgaa.densify_folder(source, target)`, "
            "or load it without stream"
        )
    return model


def processor(name: str, value: Any) -> Processor:
    """Read a tokenizer, or the processor of a vision-language model.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(value, PreTrainedTokenizerBase | ProcessorMixin):
        return value
    raise UsageError(
        f"{name} is {_describe(value)}, expected the tokenizer of the model, or the processor of a vision-language model, as "
        "mgaa.load returns it with the model"
    )


def path(name: str, value: Any) -> str | Path:
    """Read a path.

    Raises:
        UsageError: it is not a path.
    """
    if isinstance(value, str | PathLike) and not isinstance(value, bytes) and str(value).strip():
        return value if isinstance(value, str) else Path(value)
    raise UsageError(f"{name} is {_describe(value)}, expected a path, as text or as a Path")


def check_differentiable(model: PreTrainedModel) -> None:
    """Refuse weights that have no gradient.

    Raises:
        UsageError: they were created in inference mode.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UsageError(
            "the weights of the model were made inside torch.inference_mode, where nothing has gradients, which this method needs: load "
            "the model outside of it"
        )


def unwrap_model(name: str, value: Any) -> PreTrainedModel:
    """Return the transformers model in a value, whatever its weights are.

    Raises:
        UsageError: it holds none, or it is in a wrapper that has to be removed first.
    """
    model = value
    while isinstance(getattr(model, "_orig_mod", None), nn.Module):  # of torch.compile
        model = model._orig_mod
    if isinstance(model, nn.Module) and _is_of_peft(model):
        model = _below_adapters(name, model)
    if isinstance(model, PreTrainedModel):
        return model
    raise UsageError(
        f"{name} is {_describe(value)}, expected a model of transformers, as mgaa.load gives it: {_suggest_model(value)}"
    )


def _below_adapters(name: str, wrapper: Any) -> Any:
    """Return the model in a `PeftModel`, with the adapters in it; adapters outside its layers would be lost."""
    inside = wrapper.get_base_model() if hasattr(wrapper, "get_base_model") else wrapper
    if any(_is_of_peft(module) for module in inside.modules()):
        return inside
    raise UsageError(
        f"{name} is a {type(wrapper).__name__} of peft whose adapter is no layer of the model (a prompt): give the model without it"
    )


def _suggest_model(value: Any) -> str:
    """Suggest what to give instead of a value that holds a model, or leads to one."""
    if isinstance(value, str | PathLike):
        return f"`model, tokenizer = mgaa.load({str(value)!r})` loads it"
    if isinstance(value, tuple | list):
        return "`model, tokenizer = mgaa.load(...)` returns both"
    for attribute in ("module", "model", "pretrained_model"):
        if isinstance(getattr(value, attribute, None), PreTrainedModel):
            return f"give the model inside, its `.{attribute}`, whole on one device"
    return "mgaa.load loads one, and so does AutoModelForCausalLM"


def _describe(value: Any) -> str:
    """Describe a value briefly."""
    shown = repr(value) if value is None or isinstance(value, str | int | float | PathLike) else ""
    kind = type(value).__name__
    return shown[:80] if shown else f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"


def _check_weights(name: str, model: PreTrainedModel) -> PreTrainedModel:
    """Return the model if its weights are plain tensors with numbers; those of a streamed one are in its files."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if strange := [
        (place, tensor) for place, tensor in tensors if type(tensor) not in (nn.Parameter, Tensor, nn.Buffer)
    ]:
        place, tensor = strange[0]
        raise InputError(
            f"{place} of {name} is a {type(tensor).__name__}, expected a plain tensor: give the model as mgaa.load gives it, neither "
            "sharded nor quantised"
        )
    absent = [] if is_offloaded(model) else [place for place, tensor in tensors if tensor.is_meta]
    if absent and any("_hf_hook" in vars(module) for module in model.modules()):
        raise InputError(
            f"{len(absent)} tensors of {name} are offloaded by accelerate ({absent[0]} is the first): load it without device_map; where it "
            "does not fit, mgaa.load(folder, stream=True) evaluates, and python -m flows.compress goes block by block"
        )
    if absent:
        raise InputError(
            f"{len(absent)} tensors of {name} are on the meta device ({absent[0]} is the first), which holds no numbers: load the weights"
        )
    return model


def _check_runs(name: str, model: PreTrainedModel) -> None:
    """Refuse a model without logits: one without a head, or with weights of several dtypes, between which no product is defined.

    Weights that transformers itself keeps in float32 are allowed.
    """
    if model.base_model is model and model.get_output_embeddings() is None:
        raise UsageError(
            f"{name} is a {type(model).__name__}, which has no language-modelling head: give the whole model, as mgaa.load or "
            "AutoModelForCausalLM gives it"
        )
    expected = model.dtype
    kept = tuple(model._get_dtype_plan(expected))
    others = [
        (place, parameter.dtype)
        for place, parameter in model.named_parameters()
        if parameter.dtype != expected and not any(part in place for part in kept)
    ]
    if others and not _quantisation(model) and not any(_is_of_peft(module) for module in model.modules()):
        place, dtype = others[0]
        raise InputError(
            f"{len(others)} parameters of {name} are not in {expected}, as the first is ({place} is in {dtype}): give it one dtype, "
            f"model.to({expected})"
        )


def _quantisation(model: PreTrainedModel) -> str:
    """Describe how a model is quantised; empty if it is not."""
    config = getattr(model.config, "quantization_config", None)
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    if config is not None and method != METHOD:
        return str(getattr(method, "value", method))
    named = ((place, parameter.dtype) for place, parameter in model.named_parameters())
    places: Iterator[str] = (f"{place} is in {dtype}" for place, dtype in named if dtype not in FLOATING)
    return next(places, "") or next(filter(None, (_packed(*entry) for entry in model.named_modules())), "")


def _packed(place: str, module: nn.Module) -> str:
    """Describe a layer that keeps its weight packed; empty for others."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    return f"{place} is a {kind}" if kind.startswith(("torch.ao.", "torchao.", "bitsandbytes.")) else ""


def _is_of_peft(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.")


def _is_replaced(module: nn.Module) -> bool:
    """Return whether an instance has a forward that a copy of it would share; one bound by accelerate or as a method is not shared."""
    own = vars(module).get("forward")
    if own is None or "_hf_hook" in vars(module):
        return False
    return not (isinstance(own, MethodType) and own.__self__ is module)
