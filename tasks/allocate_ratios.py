"""Step 6, allocate ratios: level 1 of MGAA, between sublayers (`mgaa.ratios`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.ladders import model_ladders
from tasks.records import RATIOS, backbone_matrices, block_file, write_table
from tasks.step import step


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
    band: float | None,
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
    ratios = allocate(method, cosines, parameters, reach_of(ladders), compression=compression, band=band, **options)
    write_table(out / RATIOS, ratios)


def sublayer_cosines(store: Store, backbone: Artifact, statistics: Artifact) -> dict[str, float]:
    """The mean cosine of every sublayer, in model order, by `<block>.<sublayer>`."""
    from mgaa.statistics import load_cosines

    folder = store.folder(statistics)
    sublayers = dict.fromkeys((matrix.block, matrix.sublayer) for matrix in backbone_matrices(store, backbone))
    loaded = {block: load_cosines(folder / block_file(block)) for block in {block for block, _ in sublayers}}
    return {sublayer: loaded[block][sublayer.partition(".")[2]][0] for block, sublayer in sublayers}
