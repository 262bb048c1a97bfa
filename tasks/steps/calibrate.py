"""Step 4, calibrate: statistics of every distinct input, one file per block (`mgaa.statistics.calibration`).

Where inputs shall be those behind the compressed blocks, this pass of the dense model measures the cosines alone; the rest is measured
block by block (tasks/steps/compress_block.py). Several workers may share the sequences (tasks/steps/calibrate_share.py).
"""

from pathlib import Path
from typing import Any

from tasks.artifacts.files import block_file
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import resuming_step
from tasks.steps.resumable_calibration import blocks_of, collect, started


@resuming_step(kind="statistics")
def calibrate(
    out: Path,
    unfinished: Path,
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    *,
    inputs: str,
    groups: int,
    batch_size: int,
    expert_tokens: float,
    unreached: str,
    device: str,
) -> None:
    """Stream the calibration tokens through the blocks; each block's statistics are written before the next block starts."""
    from mgaa.blocks.resume import whole

    measuring: dict[str, Any] = {
        "groups": groups,
        "batch_size": batch_size,
        "expert_tokens": expert_tokens,
        "unreached": unreached,
    }
    for first, calibration in started(store, backbone, tokens, unfinished, measuring, device):
        measure = calibration.measure if inputs == "dense" else calibration.cosines
        for index in blocks_of(calibration):
            statistics = measure(index)
            with whole(unfinished / block_file(first + index)) as draft:
                statistics.save(draft)
    collect(unfinished, out)
