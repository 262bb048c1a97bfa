"""The ladders of a whole model (`mgaa.budget`), and the scores of the FFNs that are pruned, put together from the files of its blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.records import backbone_matrices, block_file


def pruning_of(channels: Mapping[str, Any] | None) -> Any:
    """How FFNs are pruned, from the plain parameter of a step; `None` where they are not."""
    from mgaa.channels import Pruning

    return None if channels is None else Pruning(**channels)


def model_ladders(
    store: Store,
    backbone: Artifact,
    spectra: Sequence[Artifact],
    scores: Sequence[Artifact],
    *,
    multiple: int | str,
    channels: Mapping[str, Any] | None,
) -> tuple[list[Any], dict[Any, Any]]:
    """The ladder of every matrix that is factorized, in model order, and the scores of every FFN that is pruned.

    Args:
        spectra, scores: of all blocks; no scores where `channels` is null.
    """
    from mgaa.channels import load_scores, prunable
    from mgaa.factors import load_energies
    from mgaa.ranks import ladders_of

    matrices, pruning = backbone_matrices(store, backbone), pruning_of(channels)
    pruned = [] if pruning is None else prunable(matrices, pruning)
    found = {
        name: each
        for block, artifact in enumerate(scores)
        for name, each in load_scores(store.folder(artifact) / block_file(block)).items()
    }
    low = [matrix for matrix in matrices if matrix.sublayer not in {each.sublayer for each in pruned}]
    blocks = [load_energies(store.folder(artifact) / block_file(block)) for block, artifact in enumerate(spectra)]
    energies = {matrix.name: blocks[matrix.block][0][matrix.local] for matrix in low}
    ladders = ladders_of(low, energies, centred=any(centred for _, centred in blocks), multiple=multiple)
    return ladders, {each: found[each.sublayer] for each in pruned}
