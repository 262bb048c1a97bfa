"""Step 4 on several workers, second half: the statistics that a single worker would have found, to the bit (`mgaa.streaming.merge`)."""

from collections.abc import Sequence
from pathlib import Path

from tasks.artifact import Artifact, Store
from tasks.load_backbone import backbone_model
from tasks.records import block_file, token_windows
from tasks.step import step


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
    device: str,
) -> None:
    """The statistics from the sums of all shares, in their order."""
    from mgaa.architectures import decoder_blocks
    from mgaa.moments import BlockSums
    from mgaa.streaming import Measuring, merge

    model, _ = backbone_model(store, backbone, device)
    measuring, sequences = Measuring(groups=groups, expert_tokens=expert_tokens), len(token_windows(store, tokens))
    for index in range(len(decoder_blocks(model))):
        shares = [BlockSums.load(store.folder(share) / block_file(index), device) for share in sums]
        merge(model, index, shares, measuring, sequences).save(out / block_file(index))
