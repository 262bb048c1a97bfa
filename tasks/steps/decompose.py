"""Step 5, decompose: energies and ordered bases of the matrices of one block (`mgaa.factors`).

Mapped over the blocks: each is an artifact of its own, so that a killed run resumes at the block where it stopped.
"""

from pathlib import Path

from tasks.artifacts.backbone import backbone_block
from tasks.artifacts.files import backbone_matrices, block_file
from tasks.artifacts.specs import MethodSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="spectra", methods={"factors": "mgaa.factors"}, task_run_name="decompose-{block}")
def decompose(
    out: Path,
    store: Store,
    backbone: Artifact,
    statistics: Artifact,
    *,
    block: int,
    factors: MethodSpec,
    device: str,
) -> None:
    """Decompose every matrix of `block` in the metric of the factorizer; serves every rank."""
    from mgaa.factors import decompose_block, save_spectra
    from mgaa.statistics.statistics import BlockStatistics

    found = BlockStatistics.load(store.folder(statistics) / block_file(block), device)
    inside = [m for m in backbone_matrices(store, backbone) if m.block == block and m.local in found.shared]
    with backbone_block(store, backbone, block, device) as model:
        weights = {matrix.local: model.get_submodule(matrix.name).weight.detach() for matrix in inside}
        save_spectra(decompose_block(weights, found, factors.method, **factors.options), out / block_file(block))
