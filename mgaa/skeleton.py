"""A model without its weights: the shapes of its matrices from its config alone, in milliseconds and no memory at any size."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mgaa.architectures import architecture_of, matrices_of
from mgaa.budget import Matrix
from mgaa.errors import InputError, UsageError
from mgaa.folder import CONFIG, examine, locate
from mgaa.fused import unfuse_
from mgaa.loading import UNREADABLE


def skeleton(
    source: str | Path, *, revision: str | None = None, dtype: str = "auto"
) -> tuple[list[Matrix], torch.dtype]:
    """Every compressible matrix of a dense backbone, and the dtype in which it would be loaded.

    Args:
        source, revision, dtype: as in `mgaa.load`.

    Raises:
        UsageError: `dtype` is `auto`, and the config does not say in which the model is stored.
        InputError: the checkpoint is missing, damaged, compressed already or of an unknown architecture.
    """
    folder = locate(source, revision)
    examine(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        architecture_of(config.model_type)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except UNREADABLE as error:
        said = str(error).strip().partition("\n")[0]
        raise InputError(
            f"transformers cannot build a model of {folder / CONFIG} ({type(error).__name__}: {said}): fetch it again"
        ) from error
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"{folder} is compressed already: give the dense backbone")
    stored = getattr(torch, dtype) if dtype != "auto" else config.dtype
    if stored is None:
        raise UsageError(
            f"backbone.dtype is auto, but {folder / CONFIG} does not say in which dtype the weights are: set backbone.dtype"
        )
    return matrices_of(unfuse_(model)), stored
