"""Step 5b, score channels: what the channels of the FFN of one block are worth, where FFNs are pruned (`mgaa.channels`)."""

from pathlib import Path

from tasks.artifact import Artifact, Store
from tasks.load_backbone import backbone_block
from tasks.records import backbone_matrices, block_file
from tasks.step import step


@step(kind="scores", task_run_name="score_channels-{block}")
def score_channels(
    out: Path, store: Store, backbone: Artifact, statistics: Artifact, *, block: int, device: str
) -> None:
    """Score the channels of the FFN of `block`; serves every width."""
    from mgaa.channels import Pruning, prunable, save_scores, score
    from mgaa.statistics import BlockStatistics

    matrices = [matrix for matrix in backbone_matrices(store, backbone) if matrix.block == block]
    found = BlockStatistics.load(store.folder(statistics) / block_file(block), device)
    with backbone_block(store, backbone, block, device) as model:
        weights = {matrix.local: model.get_submodule(matrix.name).weight.detach() for matrix in matrices}
        scores = {each.sublayer: score(each, weights, found) for each in prunable(matrices, Pruning())}
    save_scores(scores, out / block_file(block))
