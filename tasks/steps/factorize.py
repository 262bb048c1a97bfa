"""Step 8, factorize: the factors of one block at its ranks, in the dtype of the backbone, and the channels that remain (`mgaa.factors`)."""

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts.backbone import backbone_block
from tasks.artifacts.files import CHANNELS, RANKS, backbone_matrices, block_file, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step

if TYPE_CHECKING:
    from torch import Tensor

    from mgaa.budget import Matrix
    from mgaa.models.lowrank import Dense, Factors


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


def write_factors(
    path: Path,
    factors: Mapping[str, "Factors"],
    kept: "Tensor | None",
    *,
    dense: Mapping[str, "Dense"] | None = None,
) -> None:
    """Write the factors of a block by matrix, the channels of its FFN that remain, and what stays dense with other weights.

    `tasks.steps.assemble.restore_` reads them.
    """
    from safetensors.torch import save_file

    tensors = {
        f"{name}/{part}": tensor.cpu().contiguous()
        for name, layer in {**factors, **(dense or {})}.items()
        for part in ("A", "B", "weight", "bias")
        if (tensor := getattr(layer, part, None)) is not None
    }
    save_file(tensors if kept is None else tensors | {CHANNELS: kept.cpu()}, path)


def slice_factors(
    model: Any, matrices: "list[Matrix]", outcome: Mapping[str, Any], spectra: Path, device: str
) -> dict[str, "Factors"]:
    """Factors by the name of the matrix, for those matrices of one block that have a rank.

    Args:
        outcome: the table of ranks.
        spectra: the file of the block.
    """
    from mgaa.factors import factorize_linear, load_spectra

    ranks = {matrix: outcome["matrices"][matrix.name]["rank"] for matrix in matrices}
    found = load_spectra(spectra, device)
    return {
        matrix.name: factorize_linear(model, matrix.name, found[matrix.local], rank)
        for matrix, rank in ranks.items()
        if rank is not None
    }


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
