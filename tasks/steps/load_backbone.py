"""Step 1, load backbone: check the model once, and remember what it is.

The artifact is a reference, not a copy: the source, its revision, the sha256 of every file, and what the later steps ask about the
model without loading it (tasks/artifacts/backbone.py). The model is checked block by block, so that this needs no room for it.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks.artifacts.backbone import place_of
from tasks.artifacts.files import BACKBONE, write_table
from tasks.cache import source as code
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import file_digest
from tasks.cache.step import step


def identify(source: str, revision: str | None) -> dict[str, str]:
    """sha256 of every file that makes the model, by name; the content that the cache key of `load_backbone` depends on."""
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
    weights: Artifact | None = None,
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
        weights: of a GGUF file, dequantized (tasks/steps/dequantize.py).
        architecture: the digest of its entry (`architecture_digest`), which every later step depends on through this artifact.
        parts: what of the model is compressed (`mgaa.models.architectures.PARTS`).
    """
    from mgaa.blocks.offload import load_block
    from mgaa.checkpoints.load import open_checkpoint
    from mgaa.checkpoints.save import check_savable
    from mgaa.evaluation.causality import check_decoder
    from mgaa.models.architectures import matrices_of, stacks_of
    from mgaa.models.fused import unfuse_
    from mgaa.models.lowrank import check_finite

    origin = _origin(store, source, revision, weights)
    model, processor, ignored = open_checkpoint(**place_of(store, origin), dtype=dtype, device="cpu", stream=True)
    check_savable(model, processor)
    matrices = matrices_of(unfuse_(model, parts), parts)
    stacks = stacks_of(model, parts)
    check_decoder(model)
    for stack in stacks:
        for index, block in enumerate(stack.blocks):
            with load_block(block, ahead=1):
                check_finite(block, stack.path(index))
    shapes = {
        "parts": [stack.part for stack in stacks],
        "blocks": sum(len(stack.blocks) for stack in stacks),
        "linear_parameters": sum(matrix.parameters for matrix in matrices),
        "matrices": [asdict(matrix) for matrix in matrices],
    }
    write_table(out / BACKBONE, origin | _facts(model, files, architecture, ignored) | shapes)


@step(kind="model")
def load_model(
    out: Path,
    store: Store,
    weights: Artifact | None = None,
    *,
    source: str,
    revision: str | None,
    dtype: str,
    files: dict[str, str],
    architecture: str,
) -> None:
    """Write the reference of a model that is only evaluated: of any architecture, dense or compressed."""
    from mgaa.checkpoints.load import open_checkpoint

    origin = _origin(store, source, revision, weights)
    model, _, ignored = open_checkpoint(**place_of(store, origin), dtype=dtype, device="cpu", stream=False)
    write_table(out / BACKBONE, origin | _facts(model, files, architecture, ignored))


def _origin(store: Store, source: str, revision: str | None, weights: Artifact | None) -> dict[str, Any]:
    """Where the model comes from; of one that was dequantized, from which file and types of tensors."""
    from mgaa.checkpoints.folder import DEQUANTIZED, locate

    origin: dict[str, Any] = {"source": source, "revision": revision}
    origin |= {} if weights is None else {"weights": {"kind": weights.kind, "digest": weights.digest}}
    record = locate(**place_of(store, origin)) / DEQUANTIZED
    return origin | ({"dequantized": json.loads(record.read_bytes())} if record.is_file() else {})


def _facts(model: Any, files: dict[str, str], architecture: str, ignored: list[str]) -> dict[str, Any]:
    """Facts for the later steps; `ignored` are tensors of the files without a place in the model, named and counted if there are any."""
    from mgaa.models.architectures import is_multimodal

    left_out = {"ignored_tensors": {"count": len(ignored), "names": ignored}} if ignored else {}
    return {
        "files": files,
        "architecture": architecture,
        "dtype": str(model.dtype).removeprefix("torch."),
        "model_type": model.config.model_type,
        "sees": is_multimodal(model.config),
        "vocabulary": model.get_input_embeddings().num_embeddings,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **left_out,
    }
