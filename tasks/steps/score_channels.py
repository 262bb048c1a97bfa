"""Step 5b, score channels: what the channels of the FFN of one block are worth, where FFNs are pruned (`mgaa.allocation.channels`)."""

from pathlib import Path

from tasks.artifacts.backbone import backbone_block
from tasks.artifacts.files import backbone_matrices, block_file
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="scores", task_run_name="score_channels-{block}")
def score_channels(
    out: Path, store: Store, backbone: Artifact, statistics: Artifact, *, block: int, device: str
) -> None:
    """Score the channels of the FFN of `block`; serves every width."""
    from mgaa.allocation.channels import Pruning, prunable_ffns, save_scores, score
    from mgaa.statistics.statistics import BlockStatistics

    matrices = [matrix for matrix in backbone_matrices(store, backbone) if matrix.block == block]
    found = BlockStatistics.load(store.folder(statistics) / block_file(block), device)
    with backbone_block(store, backbone, block, device) as model:
        weights = {matrix.local: model.get_submodule(matrix.name).weight.detach() for matrix in matrices}
        scores = {each.sublayer: score(each, weights, found) for each in prunable_ffns(matrices, Pruning())}
    save_scores(scores, out / block_file(block))
