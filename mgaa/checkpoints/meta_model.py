"""A model without its weights: the shapes of all its tensors, from its config or of a model, in milliseconds and no memory at any size.

Of files that are there, the headers say one thing that a config does not: whether they hold a head beside the embedding that it is tied to.
Then both are reckoned with, for loading compares them in memory.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from mgaa.blocks.offload import where
from mgaa.boundary import one_error
from mgaa.checkpoints.folder import CONFIG, examine_config, locate, weight_files
from mgaa.checkpoints.load import check_counts, class_of
from mgaa.checkpoints.tied_weights import state_tying
from mgaa.errors import InputError, UsageError
from mgaa.models.architectures import architecture_of
from mgaa.models.fused import unfuse_
from mgaa.models.tensor_names import places


def skeleton(source: str | Path, *, revision: str | None = None, dtype: str = "auto") -> PreTrainedModel:
    """A dense backbone on the meta device, taken apart into linears, in the dtype in which `load` would give it.

    Args:
        source, revision, dtype: as in `mgaa.load`; of a folder nothing but the config need be there, if that says the dtype.

    Raises:
        UsageError: `dtype` is `auto`, and neither the config nor the files say in which the model is stored.
        InputError: the config is missing, damaged, of a compressed model or of an unknown architecture.
    """
    folder = locate(source, revision)
    examine_config(folder)
    remedy = "correct it, install what is missing, or fetch it again"
    with one_error(f"transformers cannot build a model of {folder / CONFIG}", remedy):
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
        held = set(places(model, where(weight_files(folder))).values())
    except InputError:
        return model  # there is nothing but the config
    for head, embedding in model.get_expanded_tied_weights_keys().items():
        if {head, embedding} <= held:
            owner, _, name = head.rpartition(".")
            own = nn.Parameter(torch.empty_like(model.get_parameter(head)), requires_grad=False)
            setattr(model.get_submodule(owner), name, own)
    state_tying(model)
    return model


def outline(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model whose tensors are on the meta device; those that are one tensor stay one."""
    empty: dict[int, Any] = {id(each): each.to("meta") for each in model.buffers()}
    for each in model.parameters():
        empty[id(each)] = nn.Parameter(each.detach().to("meta"), requires_grad=each.requires_grad)
    copied: PreTrainedModel = copy.deepcopy(model, empty)
    return copied


def _dtype(folder: Path, config: torch.dtype | None, wanted: str) -> torch.dtype:
    if wanted != "auto":
        given: torch.dtype = getattr(torch, wanted)
        return given
    if config is not None:
        return config
    try:
        return stored_dtype(folder)
    except InputError as error:
        raise UsageError(
            f"backbone.dtype is auto, but {folder / CONFIG} does not say in which dtype the weights are: set backbone.dtype"
        ) from error


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of the first floating tensor in the files, which transformers takes for that of all where the config is silent."""
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping; pages are not read)
                dtype: torch.dtype = tensors.get_tensor(name).dtype
                if dtype.is_floating_point:
                    return dtype
    return torch.float32
