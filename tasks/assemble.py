"""Step 9, assemble: the compressed checkpoint, a Hugging Face folder that loads with ordinary tools (`mgaa.checkpoint`)."""

from collections.abc import Sequence
from pathlib import Path

from tasks.artifact import Artifact, Store
from tasks.records import backbone_record, block_file
from tasks.step import step


@step(kind="checkpoint")
def assemble(out: Path, store: Store, backbone: Artifact, factors: Sequence[Artifact]) -> None:
    """Put the factors of all blocks into the backbone and save it with its tokenizer."""
    from safetensors.torch import load_file

    from mgaa.checkpoint import apply_factors, load, save
    from mgaa.fused import unfuse_
    from mgaa.lowrank import Factors

    record = backbone_record(store, backbone)
    model, tokenizer = load(record["source"], revision=record["revision"], dtype=record["dtype"], device="cpu")
    unfuse_(model)
    for block, artifact in enumerate(factors):
        tensors = load_file(store.folder(artifact) / block_file(block))
        names = dict.fromkeys(name.rpartition("/")[0] for name in tensors)
        apply_factors(
            model,
            {name: Factors(tensors[f"{name}/A"], tensors[f"{name}/B"], tensors.get(f"{name}/bias")) for name in names},
        )
    save(model, tokenizer, out)
