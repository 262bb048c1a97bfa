"""Step 9d, collect recovered: the ranks of a checkpoint after recovery, which may have raised them, as one table.

The kept energies are those of the factorization: what tuning changes is not an approximation of the dense weights any more.
"""

import json
from pathlib import Path
from typing import Any

from tasks.artifacts.files import RANKS, backbone_matrices, table, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="ranks")
def collect_recovered(out: Path, store: Store, backbone: Artifact, ranks: Artifact, checkpoint: Artifact) -> None:
    """The table of ranks with the ranks and parameters that the checkpoint has.

    Args:
        ranks: before the recovery.
        checkpoint: after it.
    """
    before = table(store, ranks, RANKS)
    config = json.loads((store.folder(checkpoint) / "config.json").read_text(encoding="utf-8"))
    modules = config.get("quantization_config", {}).get("modules", {})
    matrices = {
        matrix.name: _entry(matrix, before["matrices"][matrix.name], modules.get(matrix.name))
        for matrix in backbone_matrices(store, backbone)
    }
    kept = sum(each["parameters"] for each in matrices.values())
    write_table(out / RANKS, {**before, "linear_parameters": kept, "matrices": matrices})


def _entry(matrix: Any, before: dict[str, Any], layer: dict[str, Any] | None) -> dict[str, Any]:
    if before["rank"] is None:
        return before
    rank = None if layer is None else layer["rank"]
    added = layer is not None and layer["bias"] and not matrix.bias
    return {**before, "rank": rank, "parameters": matrix.cost(rank, centred=added)}
