"""Step 5, allocate ratios: level 1 of MGAA, between sublayers (`mgaa.ratios`)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.calibrate import block_file
from tasks.load_backbone import backbone_matrices
from tasks.step import step

TABLE = "ratios.json"


@step(kind="ratios", methods="mgaa.ratios")
def allocate_ratios(
    out: Path,
    store: Store,
    backbone: Artifact,
    statistics: Artifact,
    spectra: Sequence[Artifact],
    *,
    method: str,
    compression: float,
    cap: float,
    multiple: int | str,
    options: dict[str, Any],
) -> None:
    """A compression ratio for every sublayer, as `{sublayer: ratio}`."""
    from mgaa.ranks import by_sublayer, reach_of
    from mgaa.ratios import allocate_ratios as allocate

    ladders = model_ladders(store, backbone, spectra, multiple)
    parameters = {
        name: sum(ladder.matrix.parameters for ladder in group) for name, group in by_sublayer(ladders).items()
    }
    cosines = sublayer_cosines(store, backbone, statistics)
    ratios = allocate(method, cosines, parameters, reach_of(ladders), compression=compression, cap=cap, **options)
    (out / TABLE).write_text(json.dumps(ratios, indent=1) + "\n")


def sublayer_cosines(store: Store, backbone: Artifact, statistics: Artifact) -> dict[str, float]:
    """The mean cosine of every sublayer, in model order, by `<block>.<sublayer>`."""
    from mgaa.statistics import load_cosines

    folder = store.folder(statistics)
    sublayers = dict.fromkeys((matrix.block, matrix.sublayer) for matrix in backbone_matrices(store, backbone))
    loaded = {block: load_cosines(folder / block_file(block)) for block in {block for block, _ in sublayers}}
    return {sublayer: loaded[block][sublayer.partition(".")[2]][0] for block, sublayer in sublayers}


def model_ladders(store: Store, backbone: Artifact, spectra: Sequence[Artifact], multiple: int | str) -> list[Any]:
    """The ladder of every matrix, in model order, from the energies of all blocks."""
    from mgaa.factors import load_energies
    from mgaa.ranks import ladders_of

    blocks = [load_energies(store.folder(artifact) / block_file(block)) for block, artifact in enumerate(spectra)]
    matrices = backbone_matrices(store, backbone)
    energies = {matrix.name: blocks[matrix.block][0][matrix.local] for matrix in matrices}
    return ladders_of(matrices, energies, centred=any(centred for _, centred in blocks), multiple=multiple)
