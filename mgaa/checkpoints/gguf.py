"""Conversion of a GGUF file, the format of llama.cpp, into a Hugging Face folder: its tensors are dequantized once.

transformers reads such a file, but what it loads keeps traces of a quantizer and cannot be saved, it passes over tensors that it does not
know, and it needs memory for the whole model. So here only its tables are used (the config, the tokenizer, the names of the tensors, and
what llama.cpp permuted, transposed or stacked), and one block at a time is dequantized in float32 by the package `gguf`, rounded to the
dtype and written. Whatever has no place in the model is refused before the first tensor is read.

`dequantized.json` in the folder says from which quantization its numbers come: their noise is part of the model.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import numpy as np
import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from mgaa.boundary import translate_errors
from mgaa.checkpoints.folder import WEIGHTS
from mgaa.checkpoints.output_folder import replace_folder
from mgaa.checkpoints.ownership import file_digest
from mgaa.checkpoints.shards import block_part, join_parts, save_processor, save_settings, write_part
from mgaa.errors import InputError, UsageError
from mgaa.models.architectures import architecture_of

DEQUANTIZED = "dequantized.json"
"""Record of the conversion, in the converted folder."""

DIGITS = ("smollm", "starcoder")
"""Rules by which text is split into single digits and then as by GPT-2, as these models publish it (`pre_tokenizer` of tokenizer.json)."""

_BLOCK = re.compile(r"blk\.(\d+)\.")


class Dequantized(TypedDict):
    """Where the numbers of a converted folder come from.

    Attributes:
        file, sha256: name and content of the GGUF file.
        tensors: how many tensors it has of each type of ggml.
    """

    file: str
    sha256: str
    tensors: dict[str, int]


def convert_gguf(source: str | Path, target: str | Path, *, dtype: str = "bfloat16") -> Dequantized:
    """Convert a GGUF file into a Hugging Face folder, which replaces an earlier one in one step.

    Args:
        source: the file, or a folder with exactly one.
        dtype: of the weights that are written.

    Raises:
        UsageError: the package `gguf` is missing, the folder has several GGUF files, or `target` holds files that are not ours.
        InputError: the file is missing, truncated or not a GGUF file, of an architecture without an entry, or has tensors or settings that
            transformers does not read.
        ResourceError: the folder cannot be written.
    """
    file = locate_gguf(source)
    with replace_folder(target) as draft:
        return fill_from_gguf(file, draft, dtype=dtype)


def locate_gguf(source: str | Path) -> Path:
    """Return the GGUF file that a source names: itself, or the only one in the folder.

    Raises:
        InputError: there is none.
        UsageError: the folder has several.
    """
    place = Path(source).expanduser()
    found = sorted(place.glob("*.gguf")) if place.is_dir() else [place]
    if len(found) > 1:
        raise UsageError(f"{place} has {len(found)} GGUF files ({found[0].name}, {found[1].name}...): name one of them")
    if not found or not found[0].is_file():
        raise InputError(f"no GGUF file at {place}: check the path")
    return found[0]


def fill_from_gguf(file: Path, folder: Path, *, dtype: str = "bfloat16") -> Dequantized:
    """Run `convert_gguf` into an empty folder that belongs to the caller."""
    reader = _read(file)
    model, tokenizer = _model(file, getattr(torch, dtype)), _tokenizer(reader, file)
    names = _places(reader, model, file)
    save_settings(model, folder)
    save_processor(tokenizer, folder)
    blocks = -1
    for block, tensors in _dequantize(reader, model, names):
        write_part(tensors, folder / (WEIGHTS if block is None else block_part(block)))
        blocks = max(blocks, -1 if block is None else block)
    join_parts(folder, blocks + 1, 5 * 10**9)
    record = Dequantized(
        file=file.name,
        sha256=file_digest(file, file.stat()),
        tensors=dict(Counter(tensor.tensor_type.name for tensor in reader.tensors).most_common()),
    )
    (folder / DEQUANTIZED).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _read(file: Path) -> Any:
    """Open a file, which checks its header, the types of its tensors, and its size."""
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise UsageError(f"reading {file} needs the package gguf: pip install 'mgaa[gguf]'") from error
    remedy = "fetch it again, or, if its tensors have a newer type, update the package gguf"
    with translate_errors(f"{file} is not a complete GGUF file", remedy):
        reader = GGUFReader(file)
    for tensor in {tensor.tensor_type: tensor for tensor in reader.tensors}.values():
        what = f"{tensor.name} in {file} has the type {tensor.tensor_type.name}, which cannot be dequantized"
        with translate_errors(what, "use another quantization of the model"):
            dequantize(tensor.data[:1], tensor.tensor_type)
    return reader


def _model(file: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Build the model on the meta device."""
    with translate_errors(f"transformers cannot read the config of {file}", "start from a model that it supports"):
        config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    architecture_of(config)
    vars(config).pop("_model_name_or_path", None)  # the title of the model
    config.name_or_path = ""
    config.rms_norm_eps = float(str(np.float32(config.rms_norm_eps)))
    with (
        translate_errors(f"transformers cannot build a model of {file}", "start from a model that it supports"),
        torch.device("meta"),
    ):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.config.architectures = [type(model).__name__]
    return model


def _tokenizer(reader: Any, file: Path) -> PreTrainedTokenizerBase:
    """Build the tokenizer; how text is split before the merges apply is known by name, and transformers takes GPT-2's for other names."""
    with translate_errors(f"transformers cannot read the tokenizer of {file}", "start from a model that it supports"):
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    model, split = (_value(reader, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if split in DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    elif model == "gpt2" and split != "gpt-2" and split not in GGUF_PRE_TOKENIZER_SPLITS:
        raise InputError(
            f"the tokenizer in {file} splits text by the rule {split!r}, which transformers does not know: start from the unquantised model"
        )
    found: PreTrainedTokenizerBase = tokenizer
    return found


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _places(reader: Any, model: PreTrainedModel, file: Path) -> dict[str, str]:
    """Map the tensors of the file to those of the model."""
    expected = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    # transformers would visit every submodule of the model (a third of the time of loading), for models that were converted without a head
    shallow = SimpleNamespace(config=model.config, state_dict=lambda: expected, named_children=list)
    names: dict[str, str] = get_gguf_hf_weights_map(shallow, _processor(model))
    found: Counter[str] = Counter()
    for tensor in reader.tensors:
        if tensor.name not in names:
            raise InputError(f"{tensor.name} in {file} has no place in {type(model).__name__}")
        found[names[tensor.name]] += int(tensor.n_elements)
    tied = model.get_expanded_tied_weights_keys()
    for name, size in expected.items():
        if found[name] != size and not (name in tied and found[name] == 0):
            raise InputError(f"{file} has {found[name]} entries of {name}, expected {size}")
    return names


def _processor(model: PreTrainedModel) -> TensorProcessor:
    family = {"qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe", "gemma3_text": "gemma3"}
    name = model.config.model_type
    return TENSOR_PROCESSORS.get(family.get(name, name), TensorProcessor)(config=model.config.to_dict())


def _dequantize(
    reader: Any, model: PreTrainedModel, names: dict[str, str]
) -> Iterator[tuple[int | None, dict[str, Tensor]]]:
    """Yield the tensors of one block after the other under their names in a Hugging Face folder; None: those outside the blocks."""
    from gguf import dequantize

    processor = _processor(model)
    groups: defaultdict[int | None, list[Any]] = defaultdict(list)
    for tensor in reader.tensors:
        match = _BLOCK.match(tensor.name)
        groups[int(match[1]) if match else None].append(tensor)
    for block, group in groups.items():
        made: dict[str, Tensor] = {}
        for tensor in group:
            weights = dequantize(tensor.data, tensor.tensor_type)
            done = processor.process(
                weights=weights, name=tensor.name, tensor_key_mapping=names, parsed_parameters={"tensors": made}
            )
            if done.name is not None:
                made[names[done.name]] = torch.from_numpy(np.array(done.weights))
        rounded = {name: tensor.to(model.dtype) for name, tensor in made.items()}
        yield block, {name: tensor.contiguous() for name, tensor in revert_weight_conversion(model, rounded).items()}
