"""Show the last sweep on one screen: factorizers against allocations, at equal parameters.

    python -m flows.show_sweep [section.key=value ...]

Reads `results/sweep.parquet` and computes nothing. A cell holds the perplexity and, except at the point that is uniform on both levels, the
difference from that point in log-perplexity with half of its 95 % interval.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.show_sweep:show"))

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.show import PLAIN
from mgaa.errors import InputError
from tasks.config.parameters import Parameters
from tasks.figures.style import label_of
from tasks.sweep.figure import sort_allocations
from tasks.sweep.publish import NAME
from tasks.sweep.table import COLUMNS

MARKS = {"better": "▼", "worse": "▲", "undecided": "≈"}
ACCURACY = (
    "Share of correct answers to the questions about images; difference from uniform: points with their 95 % interval."
)
LEGEND = f"""▼ better, ▲ worse than uniform beyond noise, ≈ undecided: log-perplexity, paired bootstrap over windows, 95 %.
Table   {NAME}.csv, {NAME}.parquet
Figure  {NAME}.png, {NAME}.svg"""


def show(parameters: Parameters) -> None:
    """Print a table for every backbone and compression, and the paths of the files.

    Raises:
        InputError: the table is missing or is not what a sweep writes.
    """
    from rich.console import Console

    table = read_sweep(parameters.folder / f"{NAME}.parquet")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN)
    for (backbone, compression), points in table.groupby(["backbone", "compression"], sort=False):
        console.print(f"{backbone} at compression {compression:g}: {common_columns(points)}", soft_wrap=True)
        console.print(grid(points, cell))
        if points.accuracy.notna().any():
            console.print(ACCURACY, soft_wrap=True)
            console.print(grid(points, format_accuracy))
    console.print(LEGEND, soft_wrap=True)


def read_sweep(path: Path) -> Any:
    """Read the table of a sweep."""
    from pandas import read_parquet

    try:
        table = read_parquet(path)
    except FileNotFoundError as error:
        raise InputError(
            f"There is no {path}: expected the table of a sweep; make it with `make ablation` or `python -m flows.sweep`."
        ) from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be read ({reason}): expected the table of a sweep; make it again with `python -m flows.sweep`."
        ) from error
    if missing := [name for name in COLUMNS if name not in table]:
        raise InputError(
            f"{path} has no column {missing[0]!r}: expected the table of a sweep; make it again with `python -m flows.sweep`."
        )
    return table


def common_columns(points: Any) -> str:
    """Summary of what the points of one backbone and compression have in common."""
    measured = points[points.status == "measured"]
    if measured.empty:
        return "no point was measured."
    first, least, most = measured.iloc[0], measured.linear_parameters.min(), measured.linear_parameters.max()
    kept = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    return f"{kept} of {first.budget:,} linear parameters; dense has perplexity {math.exp(first.nll - first.above_dense):.2f}"


def grid(points: Any, cell: Callable[[Any], str]) -> Any:
    """Table with factorizers as rows and allocations as columns."""
    from rich import box
    from rich.table import Table

    allocations = sort_allocations(points.allocation)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("factors", no_wrap=True)
    for name in allocations:
        table.add_column(label_of(name), justify="right")
    for (factors, options), row in points.groupby(["factors", "factors_options"], sort=False):
        cells = {point.allocation: cell(point) for point in row.itertuples()}
        table.add_row(f"{factors} {options}".strip(), *(cells.get(name, "") for name in allocations))
    return table


def cell(point: Any) -> str:
    """Cell of a point: its perplexity, and how it compares with the reference."""
    from pandas import isna

    if point.status != "measured":
        return "failed"
    if isna(point.reference) or point.reference == point.point:
        return f"{point.perplexity:.2f}"
    half = (point.difference_high - point.difference_low) / 2
    width = "" if isna(half) else f" ± {half:.4f}"
    return f"{point.perplexity:.2f} {point.difference:+.4f}{width} {MARKS[point.verdict]}"


def format_accuracy(point: Any) -> str:
    """Cell of a point: its share of correct answers, and how it compares with the reference, in points."""
    from pandas import isna

    if isna(point.accuracy):
        return "failed"
    if isna(point.accuracy_difference) or point.reference == point.point:
        return f"{point.accuracy:.3f}"
    low, high = point.accuracy_difference_low, point.accuracy_difference_high
    mark = MARKS["better" if low > 0 else "worse" if high < 0 else "undecided"]
    return f"{point.accuracy:.3f} {100 * point.accuracy_difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) {mark}"
