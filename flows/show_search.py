"""Show the last searches on one screen: the best objective on validation text, and its value on the evaluation text.

    python -m flows.show_search [section.key=value ...]

Reads `results/search/` and computes nothing.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.show_search:show"))

import math
import sys
from pathlib import Path
from typing import Any

from flows.show import PLAIN
from mgaa.errors import InputError
from tasks.config.parameters import Parameters
from tasks.figures.style import label_of
from tasks.search.figure import label_search
from tasks.search.publish import FOLDER
from tasks.search.study import COLUMNS, NAME

LEGEND = f"""▼ better, ▲ worse than MGAA beyond noise, ≈ undecided: log-perplexity, paired bootstrap over windows, 95 %.
Trials       {FOLDER}/trials.csv, {FOLDER}/search.json
Allocations  {FOLDER}/allocation.json; the best one: python -m flows.compress ranks.method=file ranks.path={FOLDER}/allocation.json
Figures      {FOLDER}/best.png, {FOLDER}/ranks.png"""
MARKS = {"better": "▼", "worse": "▲", "undecided": "≈"}


def show(parameters: Parameters) -> None:
    """Print one row for every search, after the dense model and MGAA.

    Raises:
        InputError: the table is missing or is not what a study writes.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = read_study(parameters.folder / FOLDER / NAME)
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("", no_wrap=True)
    for name in ("groups", "seed", "evaluations", "objective", "perplexity", "above dense", "to MGAA", "seconds"):
        grid.add_column(name, justify="right")
    for row in table.itertuples():
        grid.add_row(*cells(row))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN)
    console.print(grid)
    console.print(LEGEND, soft_wrap=True)


def read_study(path: Path) -> Any:
    """Read the table of a study."""
    from pandas import read_csv

    remedy = "make it with `python -m flows.search method=bolaco`"
    try:
        table = read_csv(path)
    except FileNotFoundError as error:
        raise InputError(f"There is no {path}: expected the table of a study; {remedy}.") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read ({reason}): expected the table of a study; {remedy}.") from error
    if missing := [name for name in COLUMNS if name not in table]:
        raise InputError(f"{path} has no column {missing[0]!r}: expected the table of a study; {remedy}.")
    return table


def cells(row: Any) -> list[str]:
    """Cells of one model; those that do not apply to it are empty."""
    measured = [f"{row.perplexity:.3f}", f"{row.above_dense:+.4f}"]
    if not isinstance(row.method, str):
        return [label_of(row.search), "", "", "", "", *measured, "", ""]
    failed = f" ({row.failed:.0f} failed)" if row.failed else ""
    half = (row.above_mgaa_high - row.above_mgaa_low) / 2
    width = "" if math.isnan(half) else f" ± {half:.4f}"
    compared = "" if math.isnan(row.above_mgaa) else f"{row.above_mgaa:+.4f}{width} {MARKS[row.verdict]}"
    return [
        label_search(row.method, row.start),
        f"{row.groups:.0f}",
        f"{row.seed:.0f}",
        f"{row.evaluations:.0f}{failed}",
        f"{row.objective:.3f}",
        *measured,
        compared,
        f"{row.seconds:.0f}",
    ]
