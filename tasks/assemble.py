"""Step 9, assemble: the compressed checkpoint, a Hugging Face folder that loads with ordinary tools (`mgaa.checkpoint`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.records import CHANNELS, backbone_record, block_file
from tasks.step import step


@step(kind="checkpoint")
def assemble(out: Path, store: Store, backbone: Artifact, factors: Sequence[Artifact]) -> None:
    """Put the factors and channels of all blocks into the backbone and save it with its tokenizer."""
    from mgaa.checkpoint import load, save
    from mgaa.fused import unfuse_

    record = backbone_record(store, backbone)
    model, tokenizer = load(record["source"], revision=record["revision"], dtype=record["dtype"], device="cpu")
    unfuse_(model)
    for block, artifact in enumerate(factors):
        restore_(model, block, store.folder(artifact) / block_file(block))
    save(model, tokenizer, out)


def restore_(model: Any, block: int, path: Path) -> None:
    """Let a block become what a file of `factors` says, in place."""
    from safetensors.torch import load_file

    from mgaa.checkpoint import apply_channels, apply_factors
    from mgaa.lowrank import Factors

    tensors = load_file(path)
    kept = tensors.pop(CHANNELS, None)
    names = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
    parts = {name: (tensors[f"{name}/A"], tensors[f"{name}/B"], tensors.get(f"{name}/bias")) for name in names}
    apply_factors(model, {name: Factors(*pair) for name, pair in parts.items()})
    if kept is not None:
        apply_channels(model, {block: kept})
