"""Conversion of a GGUF file, the format of llama.cpp, into a Hugging Face folder: its tensors are dequantized once.

transformers reads such files, but what it loads keeps traces of a quantizer and cannot be saved, it passes over tensors and settings that
it does not know, and it needs memory for the whole model. So here only its tables are used (`mgaa.checkpoints.gguf_model`): one block at a
time is dequantized in float32 by the package `gguf`, rounded to the dtype and written. Whatever has no place in the model is refused before
the first tensor is read.

`dequantized.json` in the folder says from which quantization its numbers come: their noise is part of the model.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from mgaa.checkpoints.folder import DEQUANTIZED, WEIGHTS, gguf_file
from mgaa.checkpoints.gguf_model import build_model, build_tokenizer, place_tensors, read_gguf, tensor_processor
from mgaa.checkpoints.output_folder import replace_folder
from mgaa.checkpoints.ownership import file_digest
from mgaa.checkpoints.processor_files import save_processor
from mgaa.checkpoints.shards import block_part, join_parts, save_settings, write_part
from mgaa.errors import UsageError
from mgaa.inputs.readers import coerce_arguments, path

LARGEST = 5 * 10**9
"""Bytes of weights up to which they go into one file."""

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


@coerce_arguments(source=path, target=path)
def convert_gguf(source: str | Path, target: str | Path, *, dtype: str = "auto") -> Dequantized:
    """Convert a GGUF file into a Hugging Face folder, which replaces an earlier one in one step.

    Args:
        source: the file, or a folder with exactly one.
        dtype: of the weights that are written; `auto`: bfloat16, or that of a file without quantized tensors.

    Returns:
        The record that the folder has as `dequantized.json`.

    Raises:
        UsageError: the package `gguf` is missing, the folder has several GGUF files or none, or `target` holds files that are not ours.
        InputError: the file is missing, truncated or not a GGUF file, of an architecture without an entry, or has tensors or settings that
            transformers does not read.
        ResourceError: the folder cannot be written.
    """
    file = gguf_file(source)
    if file is None:
        raise UsageError(f"{source} is no GGUF file, expected one (.gguf), or a folder with exactly one")
    with replace_folder(target) as draft:
        return fill_from_gguf(file, draft, dtype=dtype)


def fill_from_gguf(file: Path, folder: Path, *, dtype: str = "auto") -> Dequantized:
    """Run `convert_gguf` into an empty folder that belongs to the caller and needs no mark; raises the errors of the disk."""
    reader = read_gguf(file)
    model, tokenizer = build_model(reader, file, dtype), build_tokenizer(reader, file)
    names = place_tensors(reader, model, file)
    save_settings(model, folder)
    save_processor(tokenizer, folder)
    blocks = 0
    for block, tensors in _dequantize(reader, model, names):
        write_part(tensors, folder / (WEIGHTS if block is None else block_part(block)))
        blocks += block is not None
    join_parts(folder, blocks, LARGEST)
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    record = Dequantized(file=file.name, sha256=file_digest(file, file.stat()), tensors=dict(types.most_common()))
    (folder / DEQUANTIZED).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def _dequantize(
    reader: Any, model: PreTrainedModel, names: dict[str, str]
) -> Iterator[tuple[int | None, dict[str, Tensor]]]:
    """Yield the tensors of one block after the other under their names in a Hugging Face folder; None: those outside the blocks."""
    from gguf import dequantize

    processor = tensor_processor(model)
    groups: defaultdict[int | None, list[Any]] = defaultdict(list)
    for tensor in reader.tensors:
        match = _BLOCK.match(tensor.name)
        groups[int(match[1]) if match else None].append(tensor)
    for block, group in groups.items():
        made: dict[str, Tensor] = {}
        for tensor in group:
            values = dequantize(tensor.data, tensor.tensor_type)
            given = {"tensor_key_mapping": names, "parsed_parameters": {"tensors": made}}
            done = processor.process(weights=values, name=tensor.name, **given)
            if done.name is not None:  # else it has put the values into `made`
                made[names[done.name]] = torch.from_numpy(np.array(done.weights))
        rounded = {name: tensor.to(model.dtype) for name, tensor in made.items()}
        yield block, {name: tensor.contiguous() for name, tensor in revert_weight_conversion(model, rounded).items()}
