"""Step 6, allocate ratios: level 1 of MGAA, between sublayers (`mgaa.ratios`).

Of the data it needs the cosines alone, so it waits for no decomposition.
"""

from pathlib import Path

from tasks.artifacts.files import RATIOS, backbone_matrices, block_file, write_table
from tasks.artifacts.ladders import target_of
from tasks.artifacts.specs import MethodSpec, TargetSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="ratios", methods={"ratios": "mgaa.ratios"})
def allocate_ratios(
    out: Path,
    store: Store,
    backbone: Artifact,
    statistics: Artifact,
    *,
    ratios: MethodSpec,
    target: TargetSpec,
    centred: bool,
    residual: bool = True,
) -> None:
    """A compression ratio for every sublayer, as `{sublayer: ratio}`.

    Args:
        ratios: level 1, with `band` among its options.
        target: what bounds the ratios besides the compression.
        centred: whether low rank adds biases.
        residual: which cosines are compared, as in `sublayer_cosines`.
    """
    from mgaa.levels import ratios_of

    found = ratios_of(
        backbone_matrices(store, backbone),
        sublayer_cosines(store, backbone, statistics, residual=residual),
        target_of(store, backbone, target),
        (ratios.method, dict(ratios.options)),
        centred=centred,
        unreached=unreached_matrices(store, backbone, statistics),
    )
    write_table(out / RATIOS, found)


def unreached_matrices(store: Store, backbone: Artifact, statistics: Artifact) -> set[str]:
    """The names of the matrices that stay dense because no calibration token has reached them."""
    from mgaa.statistics.statistics import load_unreached

    matrices, folder = backbone_matrices(store, backbone), store.folder(statistics)
    found = {block: load_unreached(folder / block_file(block)) for block in {matrix.block for matrix in matrices}}
    return {matrix.name for matrix in matrices if matrix.local in found[matrix.block]}


def sublayer_cosines(
    store: Store, backbone: Artifact, statistics: Artifact, *, residual: bool = True
) -> dict[str, float]:
    """The mean cosine of every sublayer that adds to a stream, in model order, by `<block>.<sublayer>`.

    Args:
        residual: of the stream before and after the sublayer; otherwise of the stream before it and what it adds.
    """
    from mgaa.statistics.statistics import load_cosines

    folder = store.folder(statistics)
    sublayers = dict.fromkeys((matrix.block, matrix.sublayer) for matrix in backbone_matrices(store, backbone))
    loaded = {block: load_cosines(folder / block_file(block)) for block in {block for block, _ in sublayers}}
    return {
        sublayer: loaded[block][name][0 if residual else 1]
        for block, sublayer in sublayers
        if (name := sublayer.partition(".")[2]) in loaded[block]
    }
