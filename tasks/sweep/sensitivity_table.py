"""Cost of compressing one type of matrix alone: `results/sensitivity.csv`, a row per type and fraction, and its figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgaa.errors import InputError
from tasks.artifacts.files import MEASUREMENT, RANKS, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import place_files
from tasks.evaluation.bootstrap import Bootstrap
from tasks.figures.style import figure_style, make_figure, save_figure

NAME = "results/sensitivity"
COLUMNS = {
    # fraction removed of the type, and of all linear parameters
    **{"type": "string", "compression": "float64", "removed": "float64"},
    # log-perplexity minus that of the dense model on the same windows, with its interval (tasks/evaluation/bootstrap.py)
    **{"perplexity": "float64", "above_dense": "float64", "above_dense_low": "float64", "above_dense_high": "float64"},
}
COLOURS = ("#56b4e9", "#0072b2", "#cc79a7", "#009e73", "#e69f00", "#d55e00", "#222222", "#8a8a8a")
MARKERS = "osD^v<>P"


@dataclass(frozen=True)
class TypeResult:
    """Result of one type compressed alone."""

    type: str
    compression: float
    ranks: Artifact
    measurement: Artifact


def rows(
    store: Store, dense: Artifact, results: Sequence[TypeResult], types: Mapping[str, int]
) -> list[dict[str, Any]]:
    """Rows of the table; `types` are the parameter counts of each type."""
    reference, total = read_table(store, dense, MEASUREMENT), sum(types.values())
    bootstrap, result = Bootstrap(reference["counts"]), []
    for each in results:
        measured = read_table(store, each.measurement, MEASUREMENT)
        difference = bootstrap.difference(measured["losses"], reference["losses"])
        result.append(
            {
                "type": each.type,
                "compression": each.compression,
                "removed": 1 - read_table(store, each.ranks, RANKS)["linear_parameters"] / total,
                "perplexity": measured["perplexity"],
                "above_dense": difference.value,
                "above_dense_low": difference.low,
                "above_dense_high": difference.high,
            }
        )
    return result


def publish(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write the table and the figure below `folder`, each file atomically."""
    from pandas import DataFrame

    table, target = DataFrame(records, columns=[*COLUMNS]).astype(COLUMNS), folder / NAME
    with place_files(target.parent) as out:
        table.to_csv(out / "sensitivity.csv", index=False)
        with figure_style():
            save_figure(curves(table), out / "sensitivity")


def frame(folder: Path) -> Any:
    """Read the table that was written.

    Raises:
        InputError: the table is missing or cannot be read.
    """
    from pandas import read_csv

    path = folder / f"{NAME}.csv"
    try:
        return read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): make it with `python -m flows.sensitivity`.") from error


def curves(table: Any) -> Any:
    """Plot the loss against the fraction removed of the type, and against the fraction removed of the model."""
    figure = make_figure(
        8.6,
        4.2,
        "What it costs to compress one type of matrix alone",
        "Log-perplexity above dense on the validation text; everything else stays dense. Bars: 95 % intervals on the same windows.",
    )
    left, right = figure.subplots(1, 2, sharey=True)
    for (name, own), colour, marker in zip(table.groupby("type", sort=False), COLOURS, MARKERS, strict=False):
        ends = [own.above_dense - own.above_dense_low, own.above_dense_high - own.above_dense]
        bars = None if own.above_dense_low.isna().any() else [each.clip(lower=0.0) for each in ends]
        look: dict[str, Any] = {"color": colour, "marker": marker, "label": name, "markersize": 3.5, "capsize": 2}
        left.errorbar(own.compression, own.above_dense, yerr=bars, **look)
        right.errorbar(own.removed, own.above_dense, yerr=bars, **look)
    left.set(xlabel="fraction of the type's parameters removed", ylabel="log-perplexity above dense (nats)")
    right.set_xlabel("fraction of all linear parameters removed by it")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure
