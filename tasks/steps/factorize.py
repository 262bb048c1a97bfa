"""Step 8, factorize: the factors of one block at its ranks, in the dtype of the backbone, and the channels that remain (`mgaa.factors`)."""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts.backbone import backbone_block
from tasks.artifacts.factors import slice_factors, write_factors
from tasks.artifacts.files import RANKS, backbone_matrices, block_file, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step

if TYPE_CHECKING:
    from torch import Tensor

    from mgaa.budget import Matrix


@step(kind="factors", task_run_name="factorize-{block}")
def factorize(
    out: Path,
    store: Store,
    backbone: Artifact,
    spectra: Artifact,
    scores: Artifact | None,
    ranks: Artifact,
    *,
    block: int,
    device: str,
) -> None:
    """Slice the bases of `block` at the ranks of its matrices; matrices that stay dense have no factors.

    Args:
        scores: of the channels of the block, where FFNs are pruned.
    """
    inside = [matrix for matrix in backbone_matrices(store, backbone) if matrix.block == block]
    outcome = read_table(store, ranks, RANKS)
    with backbone_block(store, backbone, block, device) as model:
        factors = slice_factors(model, inside, outcome, store.folder(spectra) / block_file(block), device)
    kept = None if scores is None else kept_channels(inside, outcome, store.folder(scores) / block_file(block))
    write_factors(out / block_file(block), factors, kept)


def kept_channels(matrices: "list[Matrix]", outcome: Mapping[str, Any], scores: Path) -> "Tensor | None":
    """The channels of the FFN of a block that remain; `None` where it was not pruned.

    Args:
        outcome: the table of ranks.
        scores: the file of the block.
    """
    from mgaa.allocation.channels import load_scores

    for sublayer, each in load_scores(scores).items():
        inside = next(group for name, group in groupby(matrices, key=lambda m: m.sublayer) if name == sublayer)
        width = outcome["matrices"][next(iter(inside)).name]["width"]
        return each.kept_channels(width, outcome["channels"]["keep_least"])
    return None
