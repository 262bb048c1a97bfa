"""Allocation of a model, sublayer by sublayer and matrix by matrix, in one table that reads from the artifacts alone.

`allocation_table` joins level 1 (cosines, ratios) and level 2 (ranks, kept energies) of one compressed model; the run writes those of all
models to `results/allocation.json`, and MLflow and the figures read nothing else. `plot_tables` is the part of it that `dvc plots` compares
between revisions, as CSV.

The error of a matrix is `||(W - W') X|| / ||W X||` over the calibration tokens in the factorizer's metric, which is `sqrt(1 - energy)`: the
squared error is the sum of the dropped energies.
"""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.artifacts.files import RANKS, RATIOS, backbone_matrices, block_file, read_table
from tasks.cache.artifact import Artifact, Store


def allocation_table(
    store: Store, backbone: Artifact, statistics: Artifact, ratios: Artifact, ranks: Artifact
) -> dict[str, Any]:
    """Compression, budget and slack of a model, its sublayers by `<block>.<sublayer>` and its matrices by name.

    Returns:
        `{compression, budget, linear_parameters, slack, sublayers: {cosine, branch_cosine, ratio, reached}, matrices: {block,
        sublayer, matrix, m, n, rank, parameters, energy, error}}`; `ratio` is what level 1 asked for, `reached` what the ranks
        gave, a `rank` of null is a matrix that stays dense; one of a pruned FFN has a `width`. Under the objective latency `latency`
        says what its profile was measured on, and `predicted_seconds`, there and of every matrix, what a call takes by it at each
        number of tokens, dense and compressed. Sublayers that were calibrated on images as well have `cosine_image` and `cosine_text`,
        over the tokens of one kind alone.
    """
    outcome = read_table(store, ranks, RANKS)
    matrices = {
        matrix.name: {
            "block": matrix.block,
            "sublayer": matrix.sublayer,
            "matrix": matrix.local,
            "m": matrix.m,
            "n": matrix.n,
            **outcome["matrices"][matrix.name],
            "error": math.sqrt(max(0.0, 1.0 - outcome["matrices"][matrix.name]["energy"])),
        }
        for matrix in backbone_matrices(store, backbone)
    }
    dense = sum(matrix["m"] * matrix["n"] for matrix in matrices.values())
    return {
        "compression": 1 - outcome["linear_parameters"] / dense,
        "budget": outcome["budget"],
        "linear_parameters": outcome["linear_parameters"],
        "slack": outcome["budget"] - outcome["linear_parameters"],
        **_latency(outcome),
        "sublayers": _sublayers(store, statistics, read_table(store, ratios, RATIOS), list(matrices.values())),
        "matrices": matrices,
    }


def _latency(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Predicted time of all linears together, where there is a prediction."""
    from mgaa.allocation.latency import total_seconds

    if "latency" not in outcome:
        return {}
    predicted = [matrix["predicted_seconds"] for matrix in outcome["matrices"].values()]
    return {"latency": {**outcome["latency"], "predicted_seconds": total_seconds(predicted)}}


def _sublayers(
    store: Store, statistics: Artifact, ratios: Mapping[str, float], matrices: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float | None]]:
    from mgaa.statistics.statistics import KINDS, load_cosines, load_cosines_by_kind

    folder = store.folder(statistics)
    files = {block: folder / block_file(block) for block in {matrix["block"] for matrix in matrices}}
    blocks = {block: load_cosines(path) for block, path in files.items()}
    apart = {block: load_cosines_by_kind(path) for block, path in files.items()}
    found = {}
    for sublayer, ratio in ratios.items():
        inside = [matrix for matrix in matrices if matrix["sublayer"] == sublayer]
        kept = sum(matrix["parameters"] for matrix in inside) / sum(matrix["m"] * matrix["n"] for matrix in inside)
        block, name = inside[0]["block"], sublayer.partition(".")[2]
        cosine, branch = blocks[block].get(name, (None, None))
        found[sublayer] = {"cosine": cosine, "branch_cosine": branch, "ratio": ratio, "reached": 1 - kept}
        seen = {f"cosine_{kind}": apart[block][f"{name}/{kind}"] for kind in KINDS if f"{name}/{kind}" in apart[block]}
        found[sublayer] |= seen
    return found


def plot_tables(
    allocations: Mapping[str, Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """CSV files for `dvc plots`, by name: ranks and sublayers of the run's method (the last of `allocations`), and every model's size.

    Args:
        allocations: `allocation_table` of every compressed model.
        models: the entries of `results/metrics.json`.
    """
    method = allocations[list(allocations)[-1]]
    ranks = (
        (
            *(matrix["block"], matrix["matrix"], matrix["rank"], matrix.get("width")),
            *(_kept(matrix), matrix["energy"], matrix["error"]),
        )
        for matrix in method["matrices"].values()
    )
    columns = ("cosine", "branch_cosine", "ratio", "reached")
    sublayers = (
        (*name.split(".", 1), *(values[column] for column in columns)) for name, values in method["sublayers"].items()
    )
    sizes = (
        (name, model["bytes"] / 1e6, model["parameters"], model["perplexity"], model["bits_per_byte"])
        for name, model in models.items()
    )
    return {
        "ranks.csv": _csv(("block", "matrix", "rank", "width", "kept", "energy", "error"), ranks),
        "sublayers.csv": _csv(("block", "sublayer", *columns), sublayers),
        "sizes.csv": _csv(("model", "megabytes", "parameters", "perplexity", "bits_per_byte"), sizes),
    }


def _kept(matrix: Mapping[str, Any]) -> float:
    return float(matrix["parameters"] / (matrix["m"] * matrix["n"]))


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()
