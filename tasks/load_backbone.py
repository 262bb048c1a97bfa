"""Step 1, load backbone: check the model once, and remember what it is.

The artifact is a reference, not a copy: the source, its revision, the sha256 of every file, and what the later steps ask about the
model without loading it. `backbone_model` gives the loaded model to the steps that need it; a process loads it once.
"""

import json
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.sealing import file_digest
from tasks.step import step

RECORD = "backbone.json"


def identify(source: str, revision: str | None) -> dict[str, str]:
    """sha256 of every file that makes the model, by name; the content that the stage key of `load_backbone` depends on."""
    from mgaa.folder import backbone_files

    return {path.name: file_digest(path, path.stat()) for path in backbone_files(source, revision)}


@step(kind="backbone")
def load_backbone(
    out: Path, store: Store, *, source: str, revision: str | None, dtype: str, files: dict[str, str]
) -> None:
    """Load the model, refuse what cannot be compressed, and write the reference."""
    from mgaa.architectures import matrices_of

    model, _ = _load(source, revision, dtype, "cpu")
    matrices = matrices_of(model)
    record = {
        "source": source,
        "revision": revision,
        "files": files,
        "dtype": str(model.dtype).removeprefix("torch."),
        "model_type": model.config.model_type,
        "blocks": 1 + max(matrix.block for matrix in matrices),
        "vocabulary": model.get_input_embeddings().num_embeddings,
        "context": model.config.max_position_embeddings,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "linear_parameters": sum(matrix.parameters for matrix in matrices),
        "matrices": [asdict(matrix) for matrix in matrices],
    }
    (out / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def backbone_record(store: Store, backbone: Artifact) -> dict[str, Any]:
    """What `load_backbone` wrote."""
    record: dict[str, Any] = json.loads((store.folder(backbone) / RECORD).read_text())
    return record


def backbone_matrices(store: Store, backbone: Artifact) -> list[Any]:
    """Every `mgaa.budget.Matrix` of the model, in order, without loading it."""
    from mgaa.budget import Matrix

    return [Matrix(**fields) for fields in backbone_record(store, backbone)["matrices"]]


def backbone_model(store: Store, backbone: Artifact, device: str) -> tuple[Any, Any]:
    """The model in eval mode on `device`, and its tokenizer; shared by the steps of a process, so never changed in place."""
    record = backbone_record(store, backbone)
    with _one_at_a_time:
        return _load(record["source"], record["revision"], record["dtype"], device)


_one_at_a_time = Lock()
"""transformers keeps state in globals while it loads, and the blocks are mapped over threads."""


@lru_cache(maxsize=1)
def _load(source: str, revision: str | None, dtype: str, device: str) -> tuple[Any, Any]:
    from mgaa.checkpoint import load

    return load(source, revision=revision, dtype=dtype, device=device)
