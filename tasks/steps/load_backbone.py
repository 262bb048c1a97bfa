"""Step 1, load backbone: check the model once, and remember what it is.

The artifact is a reference, not a copy: the source, its revision, the sha256 of every file, and what the later steps ask about the
model without loading it. It is looked at block by block, so that this needs no room for the model. `backbone_model` gives the
loaded model to the steps that need it, `backbone_block` one block of it; a process loads it once. Where there is no room for it, its
blocks stay in their files (tasks/cache/placement.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import Any

from tasks.artifacts.files import BACKBONE, backbone_record, write_table
from tasks.cache import source as code
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import digest, file_digest
from tasks.cache.placement import streams
from tasks.cache.step import step


def identify(source: str, revision: str | None) -> dict[str, str]:
    """sha256 of every file that makes the model, by name; the content that the stage key of `load_backbone` depends on."""
    from mgaa.checkpoints.folder import backbone_files

    return {path.name: file_digest(path, path.stat()) for path in backbone_files(source, revision)}


def architecture_digest(source: str, revision: str | None) -> str:
    """The digest of the entries of the model (`mgaa.models.entries`), so that an edited one voids what was made by it, and a new one
    nothing."""
    from mgaa.checkpoints.folder import model_types

    return code.entries_of(*model_types(source, revision))


@step(kind="backbone")
def load_backbone(
    out: Path,
    store: Store,
    *,
    source: str,
    revision: str | None,
    dtype: str,
    files: dict[str, str],
    architecture: str,
    parts: list[str],
) -> None:
    """Load the model, refuse what cannot be compressed, and write the reference with the shapes of all matrices.

    Args:
        architecture: the digest of its entry (`architecture_digest`), which every later step depends on through this artifact.
        parts: what of the model is compressed (`mgaa.models.architectures.PARTS`).
    """
    from mgaa.blocks.offload import resident
    from mgaa.checkpoints.load import open_checkpoint
    from mgaa.checkpoints.save import check_savable
    from mgaa.evaluation.causality import check_decoder
    from mgaa.models.architectures import matrices_of, stacks_of
    from mgaa.models.fused import unfuse_
    from mgaa.models.lowrank import check_finite

    model, processor, ignored = open_checkpoint(source, revision=revision, dtype=dtype, device="cpu", stream=True)
    check_savable(model, processor)
    matrices = matrices_of(unfuse_(model, parts), parts)
    stacks = stacks_of(model, parts)
    check_decoder(model)
    for stack in stacks:
        for index, block in enumerate(stack.blocks):
            with resident(block, ahead=1):
                check_finite(block, stack.path(index))
    shapes = {
        "parts": [stack.part for stack in stacks],
        "blocks": sum(len(stack.blocks) for stack in stacks),
        "linear_parameters": sum(matrix.parameters for matrix in matrices),
        "matrices": [asdict(matrix) for matrix in matrices],
    }
    write_table(out / BACKBONE, _reference(model, source, revision, files, architecture, ignored) | shapes)


@step(kind="model")
def load_model(
    out: Path,
    store: Store,
    *,
    source: str,
    revision: str | None,
    dtype: str,
    files: dict[str, str],
    architecture: str,
) -> None:
    """The same reference for a model that is only evaluated: of any architecture, dense or compressed."""
    with _one_at_a_time:
        model, _, ignored = _load(source, revision, dtype, "cpu", stream=False, content=digest(files))
    write_table(out / BACKBONE, _reference(model, source, revision, files, architecture, ignored))


def _reference(
    model: Any, source: str, revision: str | None, files: dict[str, str], architecture: str, ignored: list[str]
) -> dict[str, Any]:
    """What the later steps ask; `ignored` are tensors of the files that have no place in the model, named and counted if there are any."""
    from mgaa.models.architectures import is_multimodal

    left_out = {"ignored_tensors": {"count": len(ignored), "names": ignored}} if ignored else {}
    return {
        "source": source,
        "revision": revision,
        "files": files,
        "architecture": architecture,
        "dtype": str(model.dtype).removeprefix("torch."),
        "model_type": model.config.model_type,
        "sees": is_multimodal(model.config),
        "vocabulary": model.get_input_embeddings().num_embeddings,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **left_out,
    }


def backbone_model(store: Store, backbone: Artifact, device: str) -> tuple[Any, Any]:
    """The model in eval mode on `device`, and its tokenizer or processor; shared by the steps of a process, so never changed in place.

    A `backbone` comes taken apart into linears (`mgaa.models.fused`), a `model` that is only evaluated as it is.
    """
    from mgaa.models.fused import unfuse_

    record = backbone_record(store, backbone)
    given: dict[str, Any] = {"stream": streams(device, weights_of(record)), "content": digest(record["files"])}
    with _one_at_a_time:
        model, tokenizer, _ = _load(record["source"], record["revision"], record["dtype"], str(device), **given)
        return unfuse_(model, record["parts"]) if backbone.kind == "backbone" else model, tokenizer


@contextmanager
def backbone_block(store: Store, backbone: Artifact, block: int, device: str) -> Iterator[Any]:
    """The model, with the tensors of one block on the device."""
    from mgaa.blocks.offload import resident
    from mgaa.models.architectures import stack_at

    model, _ = backbone_model(store, backbone, device)
    stack = stack_at(model, block, parts_of(store, backbone))
    with resident(stack.blocks[block - stack.first]):
        yield model


def parts_of(store: Store, backbone: Artifact) -> list[str]:
    """What of the backbone is compressed."""
    found: list[str] = backbone_record(store, backbone)["parts"]
    return found


def backbone_processor(store: Store, backbone: Artifact) -> tuple[Any, Any]:
    """The config of the model and its tokenizer, or its processor where it sees, without its weights."""
    from mgaa.checkpoints.load import config_and_processor

    record = backbone_record(store, backbone)
    found: tuple[Any, Any] = config_and_processor(record["source"], record["revision"])
    return found


def backbone_tokenizer(store: Store, backbone: Artifact) -> tuple[Any, Any]:
    """The config of the model and its tokenizer, without its weights."""
    from mgaa.models.processors import tokenizer_of

    config, processor = backbone_processor(store, backbone)
    return config, tokenizer_of(processor)


def weights_of(record: dict[str, Any]) -> int:
    """Bytes of the weights of a model in memory, by its record."""
    import torch

    dtype: torch.dtype = getattr(torch, record["dtype"])
    return int(record["parameters"]) * dtype.itemsize


def forget() -> None:
    """Drop the loaded models, before a step that needs the memory for another one."""
    _loaded.clear()


_one_at_a_time = Lock()
"""transformers keeps state in globals while it loads, and the blocks are mapped over threads."""
_loaded: dict[str, tuple[tuple[Any, ...], Any]] = {}
"""The one model that this process has on each device, with what it was loaded from."""


def _load(source: str, revision: str | None, dtype: str, device: str, *, stream: bool, content: str) -> Any:
    """A `mgaa.checkpoints.load.Loaded`; `content` makes it another model when the files in the same place are others."""
    from mgaa.checkpoints.load import open_checkpoint

    key = (source, revision, dtype, stream, content)
    if device not in _loaded or _loaded[device][0] != key:
        _loaded.pop(device, None)
        _loaded[device] = key, open_checkpoint(source, revision=revision, dtype=dtype, device=device, stream=stream)
    return _loaded[device][1]
