"""A model without its weights: the shapes of all its tensors, from its config or from a model, in milliseconds and without memory at any
size.

Where files exist, their headers hold one fact that a config does not: whether they have a head separate from the embedding that it is tied
to. Then both are counted, because loading compares them in memory.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from mgaa.blocks.offload import index_tensors
from mgaa.boundary import translate_errors
from mgaa.checkpoints.folder import CONFIG, examine_config, gguf_file, locate, weight_files
from mgaa.checkpoints.gguf_model import build_model, read_gguf
from mgaa.checkpoints.load import check_counts, class_of
from mgaa.checkpoints.tied_weights import state_tying
from mgaa.errors import InputError, UsageError
from mgaa.models.architectures import architecture_of
from mgaa.models.fused import unfuse_
from mgaa.models.tensor_names import map_tensors


def load_meta_model(source: str | Path, *, revision: str | None = None, dtype: str = "auto") -> PreTrainedModel:
    """Build a dense backbone on the meta device, split into linears, in the dtype in which `load` would return it.

    Args:
        source, revision, dtype: as in `mgaa.load`; the folder only needs the config, if that contains the dtype.

    Raises:
        UsageError: `dtype` is `auto`, and neither the config nor the files name the dtype of the weights.
        InputError: the config is missing or damaged, or belongs to a compressed model or an unknown architecture.
    """
    if (file := gguf_file(source, revision)) is not None:
        return unfuse_(build_model(read_gguf(file), file, dtype))
    folder = locate(source, revision)
    examine_config(folder)
    remedy = "correct it, install what is missing, or fetch it again"
    with translate_errors(f"transformers cannot build a model of {folder / CONFIG}", remedy):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        check_counts(config, folder)
        architecture_of(config)
        with torch.device("meta"):
            model: PreTrainedModel = class_of(config).from_config(
                config, dtype=_dtype(folder, config.dtype, dtype), trust_remote_code=False
            )
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"{folder} is compressed already: give the dense backbone")
    return unfuse_(_untied(model, folder))


def _untied(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    try:
        held = set(map_tensors(model, index_tensors(weight_files(folder))).values())
    except InputError:
        return model  # there is only the config
    for head, embedding in model.get_expanded_tied_weights_keys().items():
        if {head, embedding} <= held:
            owner, _, name = head.rpartition(".")
            own = nn.Parameter(torch.empty_like(model.get_parameter(head)), requires_grad=False)
            setattr(model.get_submodule(owner), name, own)
    state_tying(model)
    return model


def meta_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model to the meta device; tied tensors stay tied."""
    empty: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in model.buffers()}
    for tensor in model.parameters():
        empty[id(tensor)] = nn.Parameter(tensor.detach().to("meta"), requires_grad=tensor.requires_grad)
    copied: PreTrainedModel = copy.deepcopy(model, empty)
    return copied


def _dtype(folder: Path, config: torch.dtype | None, name: str) -> torch.dtype:
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if config is not None:
        return config
    try:
        return stored_dtype(folder)
    except InputError as error:
        raise UsageError(
            f"backbone.dtype is auto, but {folder / CONFIG} does not say in which dtype the weights are: set backbone.dtype"
        ) from error


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of the first floating-point tensor in the files, which transformers assumes for all where the config has none."""
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping; pages are not read)
                dtype: torch.dtype = tensors.get_tensor(name).dtype
                if dtype.is_floating_point:
                    return dtype
    return torch.float32
