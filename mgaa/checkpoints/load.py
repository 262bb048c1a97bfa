"""Loading of models: a dense backbone or a compressed checkpoint, completely or not at all.

Every tensor of the model comes from the files, every tensor of the files is used or known to be a leftover of earlier versions of
transformers (`mgaa.models.tensor_names`), all numbers are finite, and no token id exceeds the embedding. `mgaa.checkpoints.folder` examines
the folder first.
"""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from mgaa.blocks.offload import aligned, index_tensors, offload_
from mgaa.boundary import describe_cause, translate_errors
from mgaa.checkpoints.folder import (
    CONFIG,
    GENERATION,
    PROCESSOR_FILES,
    examine,
    examine_config,
    examine_tokenizer,
    gguf_file,
    locate,
    weight_files,
)
from mgaa.checkpoints.gguf import fill_from_gguf
from mgaa.checkpoints.tied_weights import state_tying
from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.inputs.readers import coerce_arguments, path
from mgaa.models.architectures import is_multimodal
from mgaa.models.lowrank import non_finite
from mgaa.models.processors import Processor, load_processor, tokenizer_of
from mgaa.models.tensor_names import LEFTOVER, map_tensors

MANY = 10_000
"""Number of blocks, or of experts per block, that no model reaches; each costs time and memory even without its weights."""
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


class LoadedModel(NamedTuple):
    """Result of loading a checkpoint.

    Attributes:
        ignored: tensors of the files that have no place in the model (`mgaa.models.tensor_names`), by their names in the files.
    """

    model: PreTrainedModel
    processor: Processor
    ignored: list[str]


@coerce_arguments(source=path)
def load(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    stream: bool = False,
) -> tuple[PreTrainedModel, Processor]:
    """Load a causal language model, dense or compressed, and its tokenizer; in evaluation mode, without gradients.

    Of a vision-language model (`mgaa.models.entries.MULTIMODAL`): the whole model, and its processor.

    Args:
        source: a local folder, the id of a Hub model, or a GGUF file, which is dequantized (`mgaa.checkpoints.gguf`).
        revision: the commit of a Hub model (40 hexadecimal digits); None for a folder.
        dtype: `auto` for the dtype of the checkpoint (of a quantized GGUF file: bfloat16), or one of `DTYPES`.
        device: `auto` for CUDA if available, otherwise the CPU; or any argument of `torch.device`.
        stream: leave the decoder blocks in their files until they are needed (`mgaa.blocks.offload`); their numbers are then checked when
            they are used. For architectures with an entry in `mgaa.models.entries`.

    Raises:
        UsageError: an argument is not among the values above, or a GGUF file is to be streamed.
        InputError: the checkpoint is missing, damaged, incomplete or of an unsupported kind (`mgaa.checkpoints.folder`).
        NumericalError: a weight is not finite.
    """
    if not stream and (file := gguf_file(source, revision)) is not None:
        device_of(device)
        with tempfile.TemporaryDirectory() as name:
            fill_from_gguf(file, Path(name), dtype=dtype)
            return open_checkpoint(name, device=device)[:2]
    model, processor, _ = open_checkpoint(source, revision=revision, dtype=dtype, device=device, stream=stream)
    return model, processor


def open_checkpoint(
    source: str | Path, *, revision: str | None = None, dtype: str = "auto", device: str = "auto", stream: bool = False
) -> LoadedModel:
    """Load a checkpoint as `load` does, and also return the ignored tensors."""
    target = device_of(device)
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    folder = locate(source, revision)
    examine(folder)
    config = _config(folder)
    processor = _processor(folder, config)
    model = _model(
        folder, config, dtype, device_map="meta"
    )  # a model of other sizes than the files is refused before it takes memory
    if not stream:
        model = _model(folder, config, dtype, device_map=None)
    _check_fit(processor, model, folder)
    files = weight_files(folder)
    ignored = sorted(name for name, place in map_tensors(model, index_tensors(files)).items() if place is None)
    if stream:
        with _quiet():
            offload_(model, files, target)
    else:
        _align_(model.to(target))
    _check_finite(model, folder)
    state_tying(model)
    return LoadedModel(model.eval().requires_grad_(False), processor, ignored)


def simulate_load(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    """Simulate `load` of a folder that has these tensors instead of its weight files.

    Args:
        folder: complete except for the weights.
        tensors: on the meta device.

    Returns:
        The model, on the meta device, and the names of tensors that do not fit, by the kind of deviation.

    Raises:
        InputError: as `load`.
    """
    examine_config(folder)
    examine_tokenizer(folder)
    config = _config(folder)
    processor = _processor(folder, config)
    with torch.device("meta"):
        kind = type(class_of(config).from_config(config, trust_remote_code=False))
    with _quiet():
        model, report = kind.from_pretrained(
            None,
            config=config,
            dtype="auto",
            device_map="meta",
            state_dict=dict(tensors),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    deviations = _deviations(report)
    if not deviations:
        _check_fit(processor, model, folder)
    return model, deviations


def config_and_processor(source: str | Path, revision: str | None = None) -> tuple[PreTrainedConfig, Processor]:
    """Load the config of a model and its tokenizer or processor, without the weights.

    Raises:
        InputError: they are missing or damaged (`mgaa.checkpoints.folder`).
    """
    folder = locate(source, revision)
    examine(folder)
    config = _config(folder)
    return config, _processor(folder, config)


def class_of(config: PreTrainedConfig) -> Any:
    """Return the class of transformers that builds a model with this config."""
    return AutoModelForImageTextToText if is_multimodal(config) else AutoModelForCausalLM


def device_of(name: str) -> torch.device:
    """Return the device of that name, resolving `auto`.

    Raises:
        UsageError: it does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device {name!r}: expected auto, cpu, cuda or cuda:<number>") from error
    if device.type == "meta":
        raise UsageError("device 'meta' holds no weights: expected auto, cpu, cuda or cuda:<number>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {name!r}: torch sees {torch.cuda.device_count()} CUDA devices; use auto or cpu")
    return device


def _processor(folder: Path, config: PreTrainedConfig) -> Processor:
    """Load the processor of a multimodal model, or the tokenizer; a multimodal model without a processor takes text only."""
    multimodal = is_multimodal(config) and any((folder / name).is_file() for name in PROCESSOR_FILES)
    what = "processor" if multimodal else "tokenizer"
    try:
        with translate_errors(
            f"the {what} in {folder} does not load", "copy the model's own there", passing=(ImportError,)
        ):
            if multimodal:
                return load_processor(folder, config)
            tokenizer: Processor = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            return tokenizer
    except ImportError as error:
        there = ", ".join(name for name in PROCESSOR_FILES if (folder / name).is_file())
        alone = f", or take {there} out of the folder: the model then takes text only" if multimodal else ""
        raise InputError(
            f"the {what} in {folder} needs a package that is not installed ({describe_cause(error)}): install it{alone}"
        ) from error


def _config(folder: Path) -> PreTrainedConfig:
    with translate_errors(f"transformers cannot read {folder / CONFIG}", "correct it, or fetch it again"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_counts(config, folder)
    return config


def check_counts(config: PreTrainedConfig, folder: Path) -> None:
    """Refuse a config with so many modules that building them would not end.

    Raises:
        InputError: `MANY` blocks or experts, or more.
    """
    for name in ("num_hidden_layers", "num_experts", "num_local_experts"):
        count = getattr(config.get_text_config(), name, None)
        if isinstance(count, int) and count >= MANY:
            raise InputError(f"{folder / CONFIG} has {name} {count}, expected less than {MANY}: fetch it again")


def _model(folder: Path, config: PreTrainedConfig, dtype: str, device_map: str | None) -> PreTrainedModel:
    """Load the weights; differing shapes are collected with the other deviations instead of raising, so that one message names them all."""
    remedy = f"correct its {CONFIG} or {GENERATION}, install what is missing, or give a causal language model"
    with translate_errors(f"{folder} does not load as a causal language model", remedy), _quiet():
        model, report = class_of(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            device_map=device_map,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    if deviations := _deviations(report):
        raise InputError(
            f"the weights in {folder} are not those of {type(model).__name__} with this config: {format_deviations(deviations)}. "
            "The checkpoint is incomplete or its config belongs to another model: fetch it again"
        )
    return model


def _deviations(report: Mapping[str, Any]) -> dict[str, set[str]]:
    """Collect what transformers found wrong with the tensors of a model, by the kind of deviation; empty where all are right."""
    deviations = {
        "missing": report["missing_keys"],
        "unexpected": {name for name in report["unexpected_keys"] if not LEFTOVER.search(name)},
        "of another shape": {name for name, *_ in report["mismatched_keys"]},
    }
    return {what: names for what, names in deviations.items() if names}


def format_deviations(deviations: Mapping[str, Collection[str]]) -> str:
    """Describe deviations in words: kind and names."""
    return "; ".join(f"{what} {format_names(names)}" for what, names in deviations.items())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of transformers: its table of missing tensors ends with advice to train, ours ends the run."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def format_names(names: Collection[str]) -> str:
    """Return the first of some names, and the number of the others."""
    first = ", ".join(sorted(names)[:3])
    return first if len(names) <= 3 else f"{first} and {len(names) - 3} more"


def _check_fit(processor: Processor, model: PreTrainedModel, folder: Path) -> None:
    highest = max(tokenizer_of(processor).get_vocab().values(), default=-1)
    rows = model.get_input_embeddings().weight.shape[0]
    if not 0 <= highest < rows:
        raise InputError(
            f"the tokenizer in {folder} has ids up to {highest}, the embedding has {rows} rows: "
            "use the tokenizer that the model was trained with"
        )


def _align_(model: PreTrainedModel) -> None:
    """Give every tensor memory of its own, so that results depend neither on the layout of the files nor on streaming."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = aligned(tensor.data)


def _check_finite(model: PreTrainedModel, folder: Path) -> None:
    for name, tensor in model.state_dict().items():
        if not tensor.is_meta and (bad := non_finite(tensor)):
            raise NumericalError(
                f"{name} in {folder} has {bad} non-finite entries of {tensor.numel()} in {tensor.dtype}: "
                "the checkpoint is damaged, or its numbers need a wider dtype (backbone.dtype: bfloat16 or float32)"
            )
