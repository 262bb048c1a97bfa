"""Step 7, allocate ranks: level 2 of MGAA, inside a sublayer (`mgaa.ranks`), and the widths of the FFNs that are pruned."""

from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.files import RANKS, RATIOS, rank_table, read_table, write_table
from tasks.artifacts.ladders import latency_of, model_ladders
from tasks.artifacts.specs import MethodSpec, TargetSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="ranks", methods={"ranks": "mgaa.ranks"})
def allocate_ranks(
    out: Path,
    store: Store,
    backbone: Artifact,
    spectra: Sequence[Artifact],
    scores: Sequence[Artifact],
    ratios: Artifact,
    plain: Sequence[Artifact] = (),
    *,
    ranks: MethodSpec,
    target: TargetSpec,
) -> None:
    """Rank (null is dense) or width, parameters and kept energy of every matrix, in the layout of `rank_table`.

    Args:
        plain: energies of the plain weights, where level 2 compares these.
    """
    from mgaa.budget import parameter_budget
    from mgaa.ranks import allocate_ranks as allocate

    latency, compression = latency_of(store, backbone, target.latency), target.compression
    ladders, pruned = model_ladders(
        store, backbone, spectra, scores, plain, multiple=target.multiple, channels=target.channels, latency=latency
    )
    given = read_table(store, ratios, RATIOS)
    found = allocate(ranks.method, ladders, given, compression=compression, pruned=pruned, **ranks.options)
    budget = parameter_budget([rank.matrix for rank in found], compression)
    write_table(out / RANKS, rank_table(found, budget=budget, channels=target.channels, latency=latency))
