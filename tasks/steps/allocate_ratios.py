"""Step 6, allocate ratios: level 1 of MGAA, between sublayers (`mgaa.ratios`).

Of the data it needs the cosines alone, so it waits for no decomposition.
"""

from pathlib import Path
from typing import Any

from tasks.artifacts.files import RATIOS, backbone_matrices, block_file, write_table
from tasks.artifacts.ladders import latency_of, pruning_of
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="ratios", methods={"method": "mgaa.ratios"})
def allocate_ratios(
    out: Path,
    store: Store,
    backbone: Artifact,
    statistics: Artifact,
    *,
    method: str,
    compression: float,
    band: float | None,
    options: dict[str, Any],
    multiple: int | str,
    centred: bool,
    channels: dict[str, Any] | None,
    latency: dict[str, Any] | None,
) -> None:
    """A compression ratio for every sublayer, as `{sublayer: ratio}`.

    Args:
        multiple, centred, channels, latency: what bounds the ratios: the step between ranks, whether low rank adds biases, how FFNs are
            pruned, by which profile ranks have to be faster.
    """
    from mgaa.levels import Target, ratios_of

    target = Target(compression, multiple, pruning_of(channels), latency_of(store, backbone, latency))
    cosines, chosen = sublayer_cosines(store, backbone, statistics), (method, {**options, "band": band})
    given: dict[str, Any] = {"centred": centred, "unreached": unreached_matrices(store, backbone, statistics)}
    ratios = ratios_of(backbone_matrices(store, backbone), cosines, target, chosen, **given)
    write_table(out / RATIOS, ratios)


def unreached_matrices(store: Store, backbone: Artifact, statistics: Artifact) -> set[str]:
    """The names of the matrices that stay dense because no calibration token has reached them."""
    from mgaa.statistics.statistics import load_unreached

    matrices, folder = backbone_matrices(store, backbone), store.folder(statistics)
    found = {block: load_unreached(folder / block_file(block)) for block in {matrix.block for matrix in matrices}}
    return {matrix.name for matrix in matrices if matrix.local in found[matrix.block]}


def sublayer_cosines(store: Store, backbone: Artifact, statistics: Artifact) -> dict[str, float]:
    """The mean cosine of every sublayer that adds to a stream, in model order, by `<block>.<sublayer>`."""
    from mgaa.statistics.statistics import load_cosines

    folder = store.folder(statistics)
    sublayers = dict.fromkeys((matrix.block, matrix.sublayer) for matrix in backbone_matrices(store, backbone))
    loaded = {block: load_cosines(folder / block_file(block)) for block in {block for block, _ in sublayers}}
    return {
        sublayer: loaded[block][name][0]
        for block, sublayer in sublayers
        if (name := sublayer.partition(".")[2]) in loaded[block]
    }
