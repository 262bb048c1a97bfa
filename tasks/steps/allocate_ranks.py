"""Step 7, allocate ranks: level 2 of MGAA, inside a sublayer (`mgaa.ranks`), and the widths of the FFNs that are pruned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts.files import RANKS, RATIOS, rank_table, table, write_table
from tasks.artifacts.ladders import latency_of, model_ladders
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="ranks", methods={"method": "mgaa.ranks"})
def allocate_ranks(
    out: Path,
    store: Store,
    backbone: Artifact,
    spectra: Sequence[Artifact],
    scores: Sequence[Artifact],
    ratios: Artifact,
    *,
    method: str,
    compression: float,
    multiple: int | str,
    options: dict[str, Any],
    channels: dict[str, Any] | None,
    latency: dict[str, Any] | None,
) -> None:
    """Rank (null is dense) or width, parameters and kept energy of every matrix, in the layout of `rank_table`."""
    from mgaa.budget import parameter_budget
    from mgaa.ranks import allocate_ranks as allocate

    faster = latency_of(store, backbone, latency)
    shared: dict[str, Any] = {"multiple": multiple, "channels": channels, "latency": faster}
    ladders, pruned = model_ladders(store, backbone, spectra, scores, **shared)
    given = table(store, ratios, RATIOS)
    ranks = allocate(method, ladders, given, compression=compression, pruned=pruned, **options)
    budget = parameter_budget([rank.matrix for rank in ranks], compression)
    write_table(out / RANKS, rank_table(ranks, budget=budget, channels=channels, latency=faster))
