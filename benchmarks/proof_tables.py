"""Tables of `benchmarks/proof.py`: an overview of every backbone, the summary over all of them, and every cell as CSV.

Increases are of log-perplexity over dense, in thousandths of a nat. Intervals are those of a paired bootstrap over the evaluation windows
(`tasks/evaluation/bootstrap.py`, 95 %): a method minus MGAA, or minus uniform, on the same windows; below 0 is better. In the
overview ▼ is better than MGAA beyond such an interval, ▲ worse, ≈ undecided.
"""

import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.evaluation.bootstrap import Bootstrap, Interval, verdict

SUMMED = ("0.2", "0.3", "0.4")
REFERENCES = ("mgaa", "uniform")
COLUMNS = (
    *("backbone", "compression", "method", "perplexity", "increase"),
    *(f"minus_{reference}{bound}" for reference in REFERENCES for bound in ("", "_low", "_high")),
    *("other_perplexity", "other_increase", "other_minus_mgaa", "other_minus_mgaa_low", "other_minus_mgaa_high"),
    *("last_word", "continuation", "removed", "cpu_seconds"),
)
"""`other_` is the other text; what was not measured is empty."""
TOTALS = (
    "method",
    "mean of MGAA's",
    "mean of uniform's",
    "worst of MGAA's",
    "worst of uniform's",
    "other text: mean of MGAA's",
    "better than MGAA",
    "worse",
    "seconds / MGAA's",
    "cells",
)
Cells = Mapping[str, Mapping[str, Any]]
"""Cells by compression, then by method."""


def tables(content: Mapping[str, Any]) -> str:
    """Overviews and summary as Markdown."""
    parts = [line for name, record in content.items() for line in ("", f"### {name}", "", *overview(record))]
    return "\n".join([*parts, "", "### Summary", "", *summary(content)])


def overview(record: Mapping[str, Any]) -> Iterator[str]:
    """Increase of every method, with one column per compression."""
    by_compression = turned(record)
    yield from head(("increase", *by_compression))
    for method in record.get("cells", {}):
        yield row([method, *(_marked(method, cells, record["dense"]) for cells in by_compression.values())])


def _marked(method: str, cells: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    if "inside" not in (cell := cells.get(method, {})):
        return "fails" if "error" in cell else ""
    level = f"{1000 * (cell['inside']['nll'] - dense['inside']['nll']):.1f}"
    if method == "mgaa" or "inside" not in cells.get("mgaa", {}):
        return level
    marks = {"better": "▼", "worse": "▲", "undecided": "≈"}
    return f"{level} {marks[verdict(interval(cell, cells['mgaa'], 'inside'))]}"


def cells_as_csv(content: Mapping[str, Any]) -> str:
    """Every cell as CSV, a line per backbone, compression and method; a cell that failed has its error in the place of the perplexity."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, record in content.items():
        writer.writerow([name, "0", "dense", *_entries(record["dense"], {}, record["dense"])])
        for compression, by_method in turned(record).items():
            for method, cell in by_method.items():
                writer.writerow([name, compression, method, *_entries(cell, by_method, record["dense"])])
    return text.getvalue()


def turned(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Cells of a backbone by compression, ascending, and method."""
    found: dict[str, dict[str, Any]] = {}
    for method, cells in record.get("cells", {}).items():
        for compression, cell in cells.items():
            found.setdefault(compression, {})[method] = cell
    return dict(sorted(found.items()))


def _entries(cell: Mapping[str, Any], cells: Mapping[str, Any], dense: Mapping[str, Any]) -> list[str]:
    if "error" in cell:
        return [cell["error"], *[""] * (len(COLUMNS) - 4)]
    tasks = cell.get("tasks", {})
    return [
        *_levels(cell, dense, "inside"),
        *(bound for reference in REFERENCES for bound in _difference(cell, cells.get(reference), "inside")),
        *_levels(cell, dense, "outside"),
        *_difference(cell, cells.get("mgaa"), "outside"),
        *(f"{tasks[task][0]:.3f}" if task in tasks else "" for task in ("last_word", "continuation")),
        f"{cell['removed']:.4f}",
        f"{cell['cpu_seconds']:.1f}" if "cpu_seconds" in cell else "",
    ]


def _levels(cell: Mapping[str, Any], dense: Mapping[str, Any], where: str) -> list[str]:
    level = cell[where]["nll"]
    return [f"{math.exp(level):.3f}", f"{1000 * (level - dense[where]['nll']):.1f}"]


def _difference(cell: Mapping[str, Any], reference: Mapping[str, Any] | None, where: str) -> list[str]:
    """The paired difference and the bounds of its interval."""
    if reference is None or reference is cell or where not in reference:
        return ["", "", ""]
    found = interval(cell, reference, where)
    return [f"{1000 * value:+.1f}" for value in (found.value, found.low, found.high)]


def interval(cell: Mapping[str, Any], reference: Mapping[str, Any], where: str) -> Interval:
    """Paired difference of two models on one text, in nats."""
    losses = cell[where]["losses"]
    return Bootstrap([cell[where]["tokens"]] * len(losses)).difference(losses, reference[where]["losses"])


def summary(content: Mapping[str, Any]) -> Iterator[str]:
    """One row per method: means and worst cells over the backbones at 0.2, 0.3 and 0.4."""
    yield from head(TOTALS)
    methods = dict.fromkeys(method for record in content.values() for method in record.get("cells", {}))
    for method in methods:
        yield row([method, *_totals(method, content)])


def _totals(method: str, content: Mapping[str, Any]) -> list[str]:
    pairs = [
        (f"{name} {compression}", record["dense"], cells)
        for name, record in content.items()
        for compression, cells in turned(record).items()
        if compression in SUMMED and all("inside" in cells.get(each, {}) for each in (method, *REFERENCES))
    ]
    if not pairs:
        return ["no cells"]
    shares = {
        each: {place: _share(cells, dense, method, each, "inside") for place, dense, cells in pairs}
        for each in REFERENCES
    }
    outside = [_share(cells, dense, method, "mgaa", "outside") for _, dense, cells in pairs]
    against = [interval(cells[method], cells["mgaa"], "inside") for _, _, cells in pairs]
    cost = [cells[method]["cpu_seconds"] / cells["mgaa"]["cpu_seconds"] for _, _, cells in pairs]
    worst = {each: max(found, key=lambda place: found[place]) for each, found in shares.items()}
    return [
        *(f"{statistics.fmean(found.values()):.0%}" for found in shares.values()),
        *(f"{shares[each][place]:.0%} ({place})" for each, place in worst.items()),
        f"{statistics.fmean(each for each in outside if math.isfinite(each)):.0%}",
        str(sum(each.high < 0 for each in against)),
        str(sum(each.low > 0 for each in against)),
        f"{statistics.fmean(cost):.2f}",
        str(len(pairs)),
    ]


def _share(cells: Mapping[str, Any], dense: Mapping[str, Any], method: str, reference: str, where: str) -> float:
    """Increase of a method as a fraction of that of a reference; NaN if the reference is not above dense."""
    own, other = (cells[each][where]["nll"] - dense[where]["nll"] for each in (method, reference))
    return float(own / other) if other > 0 else math.nan


def head(columns: Sequence[str]) -> list[str]:
    """Head of a Markdown table."""
    return [row(list(columns)), "|" + "---|" * len(columns)]


def row(entries: list[str]) -> str:
    """Row of a Markdown table."""
    return f"| {' | '.join(entries)} |"
