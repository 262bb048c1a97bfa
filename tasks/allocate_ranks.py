"""Step 7, allocate ranks: level 2 of MGAA, inside a sublayer (`mgaa.ranks`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifact import Artifact, Store
from tasks.ladders import model_ladders
from tasks.records import RANKS, RATIOS, table, write_table
from tasks.step import step


@step(kind="ranks", methods="mgaa.ranks")
def allocate_ranks(
    out: Path,
    store: Store,
    backbone: Artifact,
    spectra: Sequence[Artifact],
    ratios: Artifact,
    *,
    method: str,
    compression: float,
    multiple: int | str,
    options: dict[str, Any],
) -> None:
    """Rank (null is dense), parameters and kept energy of every matrix, as `{matrix: {...}}`."""
    from mgaa.budget import parameter_budget
    from mgaa.ranks import allocate_ranks as allocate

    ladders = model_ladders(store, backbone, spectra, multiple)
    ranks = allocate(method, ladders, table(store, ratios, RATIOS), compression=compression, **options)
    outcome = {
        "budget": parameter_budget([ladder.matrix for ladder in ladders], compression),
        "linear_parameters": sum(rank.parameters for rank in ranks),
        "matrices": {
            rank.matrix.name: {"rank": rank.rank, "parameters": rank.parameters, "energy": rank.energy}
            for rank in ranks
        },
    }
    write_table(out / RANKS, outcome)
