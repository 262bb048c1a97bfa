"""The table and the figure of a sweep take whatever can come out of one: failures, a single compression, single windows, gains."""

import math
from pathlib import Path
from typing import Any

import pandas
import pytest

from tasks.parameters import load
from tasks.points import points
from tasks.sweep_figure import in_order, losses
from tasks.sweep_results import NAME, SUFFIXES, publish
from tasks.sweep_table import COLUMNS, frame
from tests.processes import ROOT

GRID = ("sweep.factors=[svd,afm]", "sweep.compression=[0.1,0.2,0.4]")


def rows(*overrides: str, offset: float = 0.0, known: bool = True) -> list[dict[str, Any]]:
    """A sweep with made-up losses."""
    found = []
    for index, point in enumerate(points(load(ROOT / "params.yaml", [*GRID, *overrides]).sweep)):
        loss = 0.01 * math.exp(5 * point.compression) * (1 + 0.01 * index) + offset
        low, high = (loss - 0.001, loss + 0.001) if known else (math.nan, math.nan)
        interval = {"above_dense": loss, "above_dense_low": low, "above_dense_high": high}
        size = {"linear_parameters": 1000, "budget": 1001, "slack": 1, "parameters": 2000, "bytes": 4000}
        found.append({"point": point.name, **point.coordinates(), "status": "measured", **interval, **size})
    return found


def failed(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in row.items() if COLUMNS[name] == "string" or name == "compression"}
    return {**kept, "status": "failed", "error": "no"}


CASES = {
    "as it should be": rows(),
    "one point": rows("sweep.factors=null", "sweep.ratios=null", "sweep.ranks=null", "sweep.compression=[0.2]"),
    "gains beside losses": rows(offset=-0.02),
    "nothing but zeros": [
        row | {"above_dense": 0.0, "above_dense_low": 0.0, "above_dense_high": 0.0} for row in rows()
    ],
    "single windows": rows(known=False),
    "some failed": [failed(row) if index % 5 == 0 else row for index, row in enumerate(rows())],
    "a factorizer failed": [failed(row) if row["factors"] == "svd" else row for row in rows()],
    "all failed": [failed(row) for row in rows()],
    "several maps": rows("sweep.ratios=[uniform,softmax,linear,{method: softmax, temperature: 0.5}]"),
    "two backbones": rows("sweep.backbone=[a,b]"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_outcome_is_written_with_the_same_columns_and_drawn(case: str, tmp_path: Path) -> None:
    publish(tmp_path, CASES[case])
    assert {path.name for path in (tmp_path / "results").iterdir()} == {f"sweep{suffix}" for suffix in SUFFIXES}
    found = pandas.read_parquet(tmp_path / f"{NAME}.parquet")
    assert {name: str(kind) for name, kind in found.dtypes.items()} == COLUMNS
    assert len(found) == len(CASES[case])
    assert (tmp_path / f"{NAME}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / f"{NAME}.csv").read_text().count("\n") == 1 + len(found)


def test_equal_tables_give_equal_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        publish(tmp_path / folder, rows())
    for suffix in SUFFIXES:
        assert (tmp_path / "a" / f"{NAME}{suffix}").read_bytes() == (tmp_path / "b" / f"{NAME}{suffix}").read_bytes()


def test_a_panel_shows_every_allocation_of_a_factorizer_with_its_intervals() -> None:
    table = frame(rows())
    axes = losses(table).axes
    assert [axis.get_title() for axis in axes] == ["svd", "afm"]
    for axis, factors in zip(axes, ("svd", "afm"), strict=True):
        assert axis.get_yscale() == "log"
        for bars, name in zip(axis.containers, in_order(table.allocation), strict=True):
            shown = table[(table.factors == factors) & (table.allocation == name)]
            assert list(bars.lines[0].get_ydata()) == list(shown.above_dense)
            ends = [end for segment in bars.lines[2][0].get_segments() for end in segment[:, 1]]
            assert ends == pytest.approx(
                [each for pair in zip(shown.above_dense_low, shown.above_dense_high, strict=True) for each in pair]
            )


def test_no_point_beats_the_pareto_front() -> None:
    table = frame(
        [row | {"above_dense": 0.5 - row["compression"]} if row["compression"] == 0.1 else row for row in rows()]
    )
    line = losses(table).axes[0].lines[0]
    front = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert front.keys() == {0.2, 0.4}  # at 0.1 more is lost than at 0.2
    for point in table.itertuples():
        assert any(x >= point.compression and y <= point.above_dense for x, y in front.items())


def test_allocations_are_shown_from_none_to_both() -> None:
    assert in_order(["both", "level2", "uniform", "level1", "both"]) == ["uniform", "level1", "level2", "both"]
    assert in_order(["both softmax energy", "level1 softmax", "uniform", "level1 linear"]) == [
        "uniform",
        "level1 linear",
        "level1 softmax",
        "both softmax energy",
    ]
