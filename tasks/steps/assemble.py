"""Step 9, assemble: the compressed checkpoint, a Hugging Face folder that loads with ordinary tools (`mgaa.checkpoints.save`)."""

import os
from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.backbone import parts_of, place_of
from tasks.artifacts.factors import restore_
from tasks.artifacts.files import backbone_record, block_file
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import resuming_step


@resuming_step(kind="checkpoint")
def assemble(out: Path, unfinished: Path, store: Store, backbone: Artifact, factors: Sequence[Artifact]) -> None:
    """Put the factors and channels of all blocks into the backbone and write it with its tokenizer, one block after the other."""
    from mgaa.checkpoints.load import open_checkpoint
    from mgaa.checkpoints.save import fill_blockwise
    from mgaa.models.architectures import decoder_blocks
    from mgaa.models.fused import unfuse_

    record = backbone_record(store, backbone)
    place = place_of(store, record)
    model, processor, _ = open_checkpoint(**place, dtype=record["dtype"], device="cpu", stream=True)
    unfuse_(model, parts_of(store, backbone))

    def change(block: int) -> None:
        restore_(model, block, store.folder(factors[block]) / block_file(block))

    for block in range(len(decoder_blocks(model)), len(factors)):
        change(block)  # of a vision tower or a projector, which are in memory
    fill_blockwise(model, processor, unfinished / "model", change=change)
    for path in (unfinished / "model").iterdir():
        os.replace(path, out / path.name)
