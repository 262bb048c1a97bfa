"""Step 4 on several workers, first half: each sums what it measures on its share of the calibration sequences
(`mgaa.statistics.shares`)."""

from pathlib import Path

from tasks.artifacts.files import block_file
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import resuming_step
from tasks.steps.resumable_calibration import collect_blocks, remaining_blocks, start_calibrations


@resuming_step(kind="sums", task_run_name="calibrate_share-{share}")
def calibrate_share(
    out: Path,
    unfinished: Path,
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    *,
    share: int,
    shares: int,
    groups: int,
    batch_size: int,
    expert_tokens: float,
    device: str,
) -> None:
    """Stream one of `shares` equal shares of the calibration tokens through the blocks: sums, which are no statistics yet."""
    from mgaa.blocks.resume import atomic_file
    from mgaa.statistics.calibration import CalibrationSettings

    settings = CalibrationSettings(groups, batch_size, expert_tokens)
    for first, calibration in start_calibrations(
        store, backbone, tokens, unfinished, settings, device, (share, shares)
    ):
        for index in remaining_blocks(calibration):
            sums = calibration.measure_sums(index)
            with atomic_file(unfinished / block_file(first + index)) as draft:
                sums.save(draft)
    collect_blocks(unfinished, out)
