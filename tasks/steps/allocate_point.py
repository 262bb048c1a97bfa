"""Step of a search, allocate point: the ranks of a point of the search space (`mgaa.search.space`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts.files import RANKS, RATIOS, backbone_matrices, rank_table, write_table
from tasks.artifacts.ladders import model_ladders
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="ranks")
def allocate_point(
    out: Path,
    store: Store,
    backbone: Artifact,
    spectra: Sequence[Artifact],
    *,
    point: list[float],
    space: dict[str, Any],
    multiple: int | str,
) -> None:
    """Write ranks in the layout of `rank_table`, and the ratio of every sublayer.

    Args:
        space: arguments of `mgaa.search.space_of`.
        multiple: the step between ranks.
    """
    from mgaa.search.space import space_of

    found = space_of(backbone_matrices(store, backbone), **space)
    ladders, _ = model_ladders(store, backbone, spectra, [], multiple=multiple, channels=None)
    ratios, ranks = found.allocate(ladders, point)
    write_table(out / RANKS, rank_table(ranks, budget=found.budget, channels=None))
    write_table(out / RATIOS, ratios)
