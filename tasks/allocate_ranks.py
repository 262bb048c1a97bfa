"""Step 6, allocate ranks: level 2 of MGAA, inside a sublayer (`mgaa.ranks`)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.allocate_ratios import TABLE as RATIOS
from tasks.allocate_ratios import model_ladders
from tasks.artifact import Artifact, Store
from tasks.step import step

TABLE = "ranks.json"


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
    given = json.loads((store.folder(ratios) / RATIOS).read_text())
    ranks = allocate(method, ladders, given, compression=compression, **options)
    table = {
        "budget": parameter_budget([ladder.matrix for ladder in ladders], compression),
        "linear_parameters": sum(rank.parameters for rank in ranks),
        "matrices": {
            rank.matrix.name: {"rank": rank.rank, "parameters": rank.parameters, "energy": rank.energy}
            for rank in ranks
        },
    }
    (out / TABLE).write_text(json.dumps(table, indent=1) + "\n")


def rank_table(store: Store, ranks: Artifact) -> dict[str, Any]:
    """What `allocate_ranks` wrote."""
    table: dict[str, Any] = json.loads((store.folder(ranks) / TABLE).read_text())
    return table
