"""Step 4 on several workers, second half: the statistics that a single worker would have found, to the bit
(`mgaa.statistics.calibration.merge`)."""

from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.backbone import backbone_model, parts_of
from tasks.artifacts.calibration_input import sequences_of
from tasks.artifacts.files import block_file
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="statistics")
def merge_shares(
    out: Path,
    store: Store,
    backbone: Artifact,
    tokens: Artifact,
    sums: Sequence[Artifact],
    *,
    groups: int,
    expert_tokens: float,
    unreached: str,
    device: str,
) -> None:
    """The statistics from the sums of all shares, in their order."""
    from mgaa.models.architectures import stacks_of
    from mgaa.statistics.block_sums import BlockSums
    from mgaa.statistics.calibration import CalibrationSettings, merge

    model, _ = backbone_model(store, backbone, device)
    measuring = CalibrationSettings(groups=groups, expert_tokens=expert_tokens, unreached=unreached)
    sequences = len(sequences_of(store, tokens))
    for stack in stacks_of(model, parts_of(store, backbone)):
        for index in range(len(stack.blocks)):
            name = block_file(stack.first + index)
            shares = [BlockSums.load(store.folder(share) / name, device) for share in sums]
            merge(stack, index, shares, measuring, sequences).save(out / name)
