"""MGAA: low-rank compression of transformers language models by Multi-Granular Adaptive Allocation (arXiv 2507.03294).

    report = mgaa.compress_(model, tokens, compression=0.2)   # in place; with **mgaa.LOSS, **mgaa.LORAP by another method
    mgaa.sweep(model, tokens, (0.1, 0.2, 0.3))                # several compressions for one calibration and decomposition
    mgaa.save(model, tokenizer, "compressed")                 # a Hugging Face folder
    model = AutoModelForCausalLM.from_pretrained("compressed")  # once mgaa is imported

Importing the package registers the checkpoint format with transformers (`mgaa.checkpoints.format`), and does nothing else: immediately if
transformers' table of formats is loaded already, otherwise as soon as any module, here or elsewhere, imports that table. So an import that
only needs an error class or a path does not wait for torch (seconds).
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mgaa.errors import InputError, LockedError, MgaaError, NumericalError, ResourceError, UsageError

if TYPE_CHECKING:
    from mgaa.checkpoints.densify import densify, densify_folder
    from mgaa.checkpoints.gguf import convert_gguf
    from mgaa.checkpoints.save import apply_factors, load, save
    from mgaa.compress import LORAP, LOSS, compress_, sweep
    from mgaa.inputs.prompts import Prompts, Question, encode
    from mgaa.models.lowrank import Factors, LowRankLinear
    from mgaa.report import Report

__version__ = "0.1.0"
__all__ = [
    "LORAP",
    "LOSS",
    "Factors",
    "InputError",
    "LockedError",
    "LowRankLinear",
    "MgaaError",
    "NumericalError",
    "Prompts",
    "Question",
    "Report",
    "ResourceError",
    "UsageError",
    "apply_factors",
    "compress_",
    "convert_gguf",
    "densify",
    "densify_folder",
    "encode",
    "load",
    "save",
    "sweep",
]

_PLACES = {
    **dict.fromkeys(("apply_factors", "load", "save"), "checkpoints.save"),
    **dict.fromkeys(("LORAP", "LOSS", "compress_", "sweep"), "compress"),
    **dict.fromkeys(("densify", "densify_folder"), "checkpoints.densify"),
    **dict.fromkeys(("Factors", "LowRankLinear"), "models.lowrank"),
    **dict.fromkeys(("Prompts", "Question", "encode"), "inputs.prompts"),
    "convert_gguf": "checkpoints.gguf",
    "Report": "report",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first access."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})


class _Teacher(MetaPathFinder):
    """Import hook that registers the checkpoint format once transformers' table of formats, which every loader consults, is loaded."""

    module = "transformers.quantizers.auto"

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.module:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = _then_format(spec.loader)  # type: ignore[method-assign]
        return spec


def _then_format(loader: Loader) -> Any:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        import_module("mgaa.checkpoints.format")

    return exec_module


if _Teacher.module in sys.modules:
    import_module("mgaa.checkpoints.format")
else:
    sys.meta_path.insert(0, _Teacher())
