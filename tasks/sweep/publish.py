"""What a sweep leaves for people: `results/sweep.csv` and `.parquet`, the table, and `results/sweep.png` and `.svg`, the figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.cache.atomic import placing
from tasks.figures.style import save, style
from tasks.sweep.figure import losses
from tasks.sweep.table import frame

NAME = "results/sweep"
SUFFIXES = (".csv", ".parquet", ".png", ".svg")


def publish(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table and the figure below `folder`, each file as a whole."""
    table, target = frame(rows), folder / NAME
    with placing(target.parent) as out:
        table.to_csv(out / "sweep.csv", index=False)
        table.to_parquet(out / "sweep.parquet", index=False)
        with style():
            save(losses(table), out / "sweep")
