"""Step 1, load backbone: check the model once, and remember what it is.

The artifact is a reference, not a copy: the source, its revision, the sha256 of every file, and what the later steps ask about the
model without loading it. `backbone_model` gives the loaded model to the steps that need it; a process loads it once.
"""

from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.records import BACKBONE, backbone_record, write_table
from tasks.sealing import digest, file_digest
from tasks.step import step


def identify(source: str, revision: str | None) -> dict[str, str]:
    """sha256 of every file that makes the model, by name; the content that the stage key of `load_backbone` depends on."""
    from mgaa.folder import backbone_files

    return {path.name: file_digest(path, path.stat()) for path in backbone_files(source, revision)}


@step(kind="backbone")
def load_backbone(
    out: Path, store: Store, *, source: str, revision: str | None, dtype: str, files: dict[str, str]
) -> None:
    """Load the model, refuse what cannot be compressed, and write the reference with the shapes of all matrices."""
    from mgaa.architectures import matrices_of
    from mgaa.fused import unfuse_

    model, _ = _load(source, revision, dtype, "cpu", content=digest(files))
    matrices = matrices_of(unfuse_(model))
    shapes = {
        "blocks": 1 + max(matrix.block for matrix in matrices),
        "linear_parameters": sum(matrix.parameters for matrix in matrices),
        "matrices": [asdict(matrix) for matrix in matrices],
    }
    write_table(out / BACKBONE, _reference(model, source, revision, files) | shapes)


@step(kind="model")
def load_model(
    out: Path, store: Store, *, source: str, revision: str | None, dtype: str, files: dict[str, str]
) -> None:
    """The same reference for a model that is only evaluated: of any architecture, dense or compressed."""
    model, _ = _load(source, revision, dtype, "cpu", content=digest(files))
    write_table(out / BACKBONE, _reference(model, source, revision, files))


def _reference(model: Any, source: str, revision: str | None, files: dict[str, str]) -> dict[str, Any]:
    return {
        "source": source,
        "revision": revision,
        "files": files,
        "dtype": str(model.dtype).removeprefix("torch."),
        "model_type": model.config.model_type,
        "vocabulary": model.get_input_embeddings().num_embeddings,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def backbone_model(store: Store, backbone: Artifact, device: str) -> tuple[Any, Any]:
    """The model in eval mode on `device`, and its tokenizer; shared by the steps of a process, so never changed in place.

    A `backbone` comes taken apart into linears (`mgaa.fused`), a `model` that is only evaluated as it is.
    """
    from mgaa.fused import unfuse_

    record = backbone_record(store, backbone)
    with _one_at_a_time:
        model, tokenizer = _load(
            record["source"], record["revision"], record["dtype"], device, content=digest(record["files"])
        )
        return unfuse_(model) if backbone.kind == "backbone" else model, tokenizer


def forget() -> None:
    """Drop the loaded model, before a step that needs the memory for another one."""
    _load.cache_clear()


_one_at_a_time = Lock()
"""transformers keeps state in globals while it loads, and the blocks are mapped over threads."""


@lru_cache(maxsize=1)
def _load(source: str, revision: str | None, dtype: str, device: str, *, content: str) -> tuple[Any, Any]:
    """`content` makes it another model when the files in the same place are others."""
    from mgaa.checkpoint import load

    return load(source, revision=revision, dtype=dtype, device=device)
