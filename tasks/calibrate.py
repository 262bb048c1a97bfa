"""Step 4, calibrate: statistics of every distinct input, one file per block (`mgaa.streaming`).

Where inputs shall be those behind the compressed blocks, this pass of the dense model measures the cosines alone; the rest is measured
block by block (tasks/compress_block.py).
"""

from pathlib import Path
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.load_backbone import backbone_model
from tasks.records import block_file, token_windows
from tasks.step import step


@step(kind="statistics")
def calibrate(
    out: Path,
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    *,
    inputs: str,
    groups: int,
    batch_size: int,
    expert_tokens: float,
    device: str,
) -> None:
    """Stream the calibration tokens through the blocks; each block's statistics are written before the next block starts."""
    from mgaa.streaming import stream_cosines, stream_statistics

    model, _ = backbone_model(store, backbone, device)
    windows = token_windows(store, tokens)
    measuring: dict[str, Any] = {"groups": groups, "batch_size": batch_size, "expert_tokens": expert_tokens}
    whole = inputs == "dense"
    blocks = (
        stream_statistics(model, windows, **measuring)
        if whole
        else stream_cosines(model, windows, batch_size=batch_size)
    )
    for index, block in enumerate(blocks):
        block.save(out / block_file(index))
