"""Published files of a sweep: the table, `results/sweep.csv` and `.parquet`, and the figure, `results/sweep.png` and `.svg`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.cache.atomic import place_files
from tasks.figures.style import figure_style, save_figure
from tasks.sweep.figure import losses
from tasks.sweep.table import frame

NAME = "results/sweep"
SUFFIXES = (".csv", ".parquet", ".png", ".svg")


def publish(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table and the figure below `folder`, each file atomically."""
    table, target = frame(rows), folder / NAME
    with place_files(target.parent) as out:
        table.to_csv(out / "sweep.csv", index=False)
        table.to_parquet(out / "sweep.parquet", index=False)
        with figure_style():
            save_figure(losses(table), out / "sweep")
