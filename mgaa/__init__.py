"""MGAA: low-rank compression of transformers language models by Multi-Granular Adaptive Allocation (arXiv 2507.03294).

    report = mgaa.compress_(model, tokens, compression=0.2)   # in place; with **mgaa.LORAP by LoRAP
    mgaa.sweep(model, tokens, (0.1, 0.2, 0.3))                # several compressions for one calibration and decomposition
    mgaa.save(model, tokenizer, "compressed")                 # a Hugging Face folder
    model = AutoModelForCausalLM.from_pretrained("compressed")  # once mgaa is imported

Importing the package teaches transformers the checkpoint format (`mgaa.format`), and nothing else.
"""

from mgaa import format as _format  # noqa: F401 (registers the format)
from mgaa.checkpoint import apply_factors, load, save
from mgaa.compress import LORAP, compress_, sweep
from mgaa.dense import densify, densify_folder
from mgaa.errors import InputError, LockedError, MgaaError, NumericalError, ResourceError, UsageError
from mgaa.lowrank import Factors, LowRankLinear
from mgaa.prompts import Prompts, Question, encode
from mgaa.report import Report

__version__ = "0.1.0"
__all__ = [
    "LORAP",
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
    "densify",
    "densify_folder",
    "encode",
    "load",
    "save",
    "sweep",
]
