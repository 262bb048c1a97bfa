"""The ladders of a whole model (`mgaa.budget`), put together from the spectra of its blocks."""

from collections.abc import Sequence
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.records import backbone_matrices, block_file


def model_ladders(store: Store, backbone: Artifact, spectra: Sequence[Artifact], multiple: int | str) -> list[Any]:
    """The ladder of every matrix, in model order, from the energies of all blocks."""
    from mgaa.factors import load_energies
    from mgaa.ranks import ladders_of

    blocks = [load_energies(store.folder(artifact) / block_file(block)) for block, artifact in enumerate(spectra)]
    matrices = backbone_matrices(store, backbone)
    energies = {matrix.name: blocks[matrix.block][0][matrix.local] for matrix in matrices}
    return ladders_of(matrices, energies, centred=any(centred for _, centred in blocks), multiple=multiple)
