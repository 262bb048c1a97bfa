"""Step 4, calibrate: statistics of every distinct input, one file per block (`mgaa.statistics.calibration`).

With `statistics.inputs=compressed` this pass of the dense model measures the cosines alone; the rest is measured block by block
(tasks/steps/compress_block.py). Several workers may share the sequences (tasks/steps/calibrate_share.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts.files import block_file
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import resuming_step
from tasks.steps.resumable_calibration import collect_blocks, remaining_blocks, start_calibrations

if TYPE_CHECKING:
    from mgaa.statistics.calibration import CalibrationSettings


@resuming_step(kind="statistics")
def calibrate(
    out: Path,
    unfinished: Path,
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    *,
    inputs: str,
    calibration: "CalibrationSettings",
    device: str,
) -> None:
    """Stream the calibration tokens through the blocks; each block's statistics are written before the next block starts."""
    from mgaa.blocks.resume import atomic_file

    for first, started in start_calibrations(store, backbone, tokens, unfinished, calibration, device):
        measure = started.measure if inputs == "dense" else started.measure_cosines
        for index in remaining_blocks(started):
            statistics = measure(index)
            with atomic_file(unfinished / block_file(first + index)) as draft:
                statistics.save(draft)
    collect_blocks(unfinished, out)
