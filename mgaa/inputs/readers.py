"""What users hand in, as the library computes with it: models out of their wrappers, and everything else refused before any work.

`accepting` reads the arguments of a public function, each by its reader, before the function sees them, and sets torch back to its defaults
meanwhile (`mgaa.inputs.torch_defaults`). A reader takes the name of an argument and what was given, and returns what the function is typed
for; what it cannot read it refuses, saying what to give. Those of models are here, those of tokens in `mgaa.inputs.token_rows`, those of
numbers in `mgaa.inputs.values`.

A model may come compiled (`torch.compile`), or in a `PeftModel` where it is only run. It may not be on its way to somewhere else: spread
by accelerate, DataParallel or FSDP, quantised, or with adapters beside its weights where these are what is compressed.
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

from mgaa.blocks.offload import is_shelved
from mgaa.errors import InputError, UsageError
from mgaa.inputs.torch_defaults import ordinary
from mgaa.models.mark import METHOD
from mgaa.models.processors import Processor

Reader = Callable[[str, Any], Any]
"""What an argument is, from its name and what was given."""

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def accepting(**readers: Reader) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function be given whatever these readers take for its arguments of these names; a default is not read."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        signature = inspect.signature(function)
        assert readers.keys() <= signature.parameters.keys(), "a reader for an argument that there is not"

        @wraps(function)
        def read(*positional: _P.args, **named: _P.kwargs) -> _R:
            given = signature.bind(*positional, **named)
            with ordinary():
                for name in readers.keys() & given.arguments.keys():
                    given.arguments[name] = readers[name](name, given.arguments[name])
            with ordinary(*(each for each in given.arguments.values() if isinstance(each, PreTrainedModel))):
                return function(*given.args, **given.kwargs)

        return read

    return decorate


def to_run(name: str, given: Any) -> PreTrainedModel:
    """A model that is only run: in memory, or with its blocks in their files (`mgaa.blocks.offload`).

    Raises:
        UsageError: it is none, has no head, or is in a wrapper that has to be taken off first.
        InputError: its weights are elsewhere, or of several dtypes.
    """
    model = _with_weights(name, unwrapped(name, given))
    _check_runs(name, model)
    return model


def to_write(name: str, given: Any) -> PreTrainedModel:
    """A model whose own weights are looked at: without adapters, and not quantised; its blocks may be in their files.

    Raises:
        UsageError, InputError: as `to_run`, or as said.
    """
    model = _with_weights(name, unwrapped(name, given))
    if adapters := [place for place, module in model.named_modules() if _is_of_peft(module)]:
        raise UsageError(
            f"{name} has adapters of peft in {len(adapters)} places ({adapters[0]} is the first), beside its weights: merge them into it, "
            "`model = peft_model.merge_and_unload()`, and give what that returns"
        )
    if method := _quantisation(model):
        raise InputError(
            f"{name} is quantised ({method}): start from the unquantised model, and quantise what comes out of it afterwards"
        )
    return model


def to_change(name: str, given: Any) -> PreTrainedModel:
    """A model that is measured, copied and changed: one to write, in memory, with its head and the forward of its class.

    Raises:
        UsageError, InputError: as `to_write`, or as said.
    """
    model = to_write(name, given)
    _check_runs(name, model)
    if is_shelved(model):
        raise UsageError(
            f"the blocks of the {name} stay in their files, where nothing can be put into them: load it without stream, or compress it by "
            "python -m flows.compress, which goes block by block"
        )
    for place, module in model.named_modules():
        if _is_replaced(module):
            raise UsageError(
                f"{name} has another forward than its class in {place or 'itself'}, which a copy of the model would not follow: take it "
                "off (`del module.forward`), or change the class"
            )
    return model


def to_densify(name: str, given: Any) -> PreTrainedModel:
    """A model whose low-rank layers are folded in memory.

    Raises:
        UsageError, InputError: as `to_write`, or its blocks are in their files.
    """
    model = to_write(name, given)
    if is_shelved(model):
        raise UsageError(
            f"the blocks of the {name} stay in their files: fold it from folder to folder, `mgaa.densify_folder(source, target)`, or load "
            "it without stream"
        )
    return model


def processor(name: str, given: Any) -> Processor:
    """A tokenizer, or the processor of a model that sees.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(given, PreTrainedTokenizerBase | ProcessorMixin):
        return given
    raise UsageError(
        f"{name} is {_said(given)}, expected the tokenizer of the model, or the processor of one that sees, as mgaa.load gives it "
        "beside the model"
    )


def path(name: str, given: Any) -> str | Path:
    """A path.

    Raises:
        UsageError: it is none.
    """
    if isinstance(given, str | PathLike) and not isinstance(given, bytes) and str(given).strip():
        return given if isinstance(given, str) else Path(given)
    raise UsageError(f"{name} is {_said(given)}, expected a path, as text or as a Path")


def check_differentiable(model: PreTrainedModel) -> None:
    """Refuse weights through which there is no gradient.

    Raises:
        UsageError: as said.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UsageError(
            "the weights of the model were made inside torch.inference_mode, where nothing has gradients, which this method needs: load "
            "the model outside of it"
        )


def unwrapped(name: str, given: Any) -> PreTrainedModel:
    """The model of transformers in what was given, whatever its weights are.

    Raises:
        UsageError: there is none, or it is in a wrapper that has to be taken off first.
    """
    model = given
    while isinstance(getattr(model, "_orig_mod", None), nn.Module):  # of torch.compile
        model = model._orig_mod
    if isinstance(model, nn.Module) and _is_of_peft(model):
        model = _below_adapters(name, model)
    if isinstance(model, PreTrainedModel):
        return model
    raise UsageError(
        f"{name} is {_said(given)}, expected a model of transformers, as mgaa.load gives it: {_instead(given)}"
    )


def _below_adapters(name: str, wrapper: Any) -> Any:
    """What a `PeftModel` wraps, with the adapters in it; those that are none of its layers would be lost."""
    inside = wrapper.get_base_model() if hasattr(wrapper, "get_base_model") else wrapper
    if any(_is_of_peft(module) for module in inside.modules()):
        return inside
    raise UsageError(
        f"{name} is a {type(wrapper).__name__} of peft whose adapter is no layer of the model (a prompt): give the model without it"
    )


def _instead(given: Any) -> str:
    """What to give in the place of something that holds a model, or leads to one."""
    if isinstance(given, str | PathLike):
        return f"`model, tokenizer = mgaa.load({str(given)!r})` loads it"
    if isinstance(given, tuple | list):
        return "`model, tokenizer = mgaa.load(...)` takes the two apart"
    for attribute in ("module", "model", "pretrained_model"):
        if isinstance(getattr(given, attribute, None), PreTrainedModel):
            return f"give the model inside, its `.{attribute}`, whole on one device"
    return "mgaa.load loads one, and so does AutoModelForCausalLM"


def _said(given: Any) -> str:
    """What was given, shortly."""
    shown = repr(given) if given is None or isinstance(given, str | int | float | PathLike) else ""
    kind = type(given).__name__
    return shown[:80] if shown else f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind}"


def _with_weights(name: str, model: PreTrainedModel) -> PreTrainedModel:
    """The model, if its weights are plain tensors with numbers; those of a streamed one are in its files."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if strange := [
        (place, tensor) for place, tensor in tensors if type(tensor) not in (nn.Parameter, Tensor, nn.Buffer)
    ]:
        place, tensor = strange[0]
        raise InputError(
            f"{place} of {name} is a {type(tensor).__name__}, expected a plain tensor: give the model as mgaa.load gives it, neither "
            "sharded nor quantised"
        )
    absent = [] if is_shelved(model) else [place for place, tensor in tensors if tensor.is_meta]
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
    """Refuse what gives no logits: a model without a head, or with weights of several dtypes, between which no product is defined; what
    transformers itself keeps in float32 may be."""
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
    """How a model is quantised, or nothing."""
    config = getattr(model.config, "quantization_config", None)
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    if config is not None and method != METHOD:
        return str(getattr(method, "value", method))
    named = ((place, parameter.dtype) for place, parameter in model.named_parameters())
    found: Iterator[str] = (f"{place} is in {dtype}" for place, dtype in named if dtype not in FLOATING)
    return next(found, "") or next(filter(None, (_packed(*each) for each in model.named_modules())), "")


def _packed(place: str, module: nn.Module) -> str:
    """Of a layer that keeps its weight packed, where and what it is; else nothing."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    return f"{place} is a {kind}" if kind.startswith(("torch.ao.", "torchao.", "bitsandbytes.")) else ""


def _is_of_peft(module: nn.Module) -> bool:
    return type(module).__module__.startswith("peft.")


def _is_replaced(module: nn.Module) -> bool:
    """Whether an instance has a forward that a copy of it would share; one that accelerate or a method has bound, it would not."""
    own = vars(module).get("forward")
    if own is None or "_hf_hook" in vars(module):
        return False
    return not (isinstance(own, MethodType) and own.__self__ is module)
