"""Step 4 on several workers, first half: each sums what it measures on its share of the calibration sequences
(`mgaa.statistics.accumulate`)."""

from pathlib import Path
from typing import Any

from tasks.artifacts.files import block_file
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import resuming_step
from tasks.steps.resumable_calibration import blocks_of, collect, started


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
    from mgaa.blocks.resume import whole

    measuring: dict[str, Any] = {"groups": groups, "batch_size": batch_size, "expert_tokens": expert_tokens}
    for first, calibration in started(store, backbone, tokens, unfinished, measuring, device, (share, shares)):
        for index in blocks_of(calibration):
            sums = calibration.sums(index)
            with whole(unfinished / block_file(first + index)) as draft:
                sums.save(draft)
    collect(unfinished, out)
