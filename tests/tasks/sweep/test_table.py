"""The table and the figure of a sweep take whatever can come out of one: failures, a single compression, single windows, gains."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest

from flows.show_sweep import ACCURACY, show
from mgaa.checkpoints.ownership import MARK
from tasks.artifacts.files import MEASUREMENT, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.config.parameters import load
from tasks.evaluation.bootstrap import Bootstrap
from tasks.sweep.figure import in_order, losses
from tasks.sweep.points import Measured, Outcome, points
from tasks.sweep.publish import NAME, SUFFIXES, publish
from tasks.sweep.table import COLUMNS, comparisons, frame
from tests.support.processes import ROOT

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
    "questions were asked": [row | {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6} for row in rows()],
    "several maps": rows("sweep.ratios=[uniform,softmax,linear,{method: softmax, temperature: 0.5}]"),
    "two backbones": rows("sweep.backbone=[a,b]"),
}


@pytest.mark.parametrize("case", CASES)
def test_every_outcome_is_written_with_the_same_columns_and_drawn(case: str, tmp_path: Path) -> None:
    publish(tmp_path, CASES[case])
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        MARK,
        *(f"sweep{suffix}" for suffix in SUFFIXES),
    }
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


# Questions about images

ANSWERS = ("accuracy", "accuracy_difference")
GIVEN = ("sweep.factors=[afm]", "sweep.compression=[0.2]")
RIGHT = {
    "afm-uniform-uniform-0.2": [True, False, False, False],
    "afm-uniform-energy-0.2": [True, True, True, False],
    "afm-softmax-uniform-0.2": [False, False, False, False],
    "afm-softmax-energy-0.2": [True, False, False, False],
}


def measurement(store: Store, right: Sequence[bool] | None) -> Artifact:
    """Two windows, and which questions were answered."""
    asked = {} if right is None else {"accuracy": sum(right) / len(right), "correct": list(right)}
    with store.writing("measurement") as folder:
        write_table(folder / MEASUREMENT, {"losses": [2.0, 3.0], "counts": [1, 1], **asked})
        return store.seal(folder, "measurement", {})


def compared(store: Store, right: dict[str, list[bool]], failing: str = "") -> dict[str, dict[str, Any]]:
    """The comparisons of a sweep with these answers; one of its points failed."""
    outcomes = []
    for point in points(load(ROOT / "params.yaml", GIVEN).sweep):
        artifact = measurement(store, right.get(point.name))
        measured = None if point.name == failing else Measured(artifact, artifact, artifact, 1.0)
        outcomes.append(Outcome(point, measured, None if measured else RuntimeError("no")))
    return comparisons(store, measurement(store, None), outcomes)


def test_the_share_of_right_answers_is_compared_with_the_uniform_one_on_the_same_questions(tmp_path: Path) -> None:
    found = compared(Store(tmp_path), RIGHT)
    assert found.keys() == RIGHT.keys()
    reference = [float(each) for each in RIGHT["afm-uniform-uniform-0.2"]]
    for name, right in RIGHT.items():
        row, over, given = found[name], Bootstrap([1] * 4), [float(each) for each in right]
        assert row["accuracy"] == sum(right) / 4
        assert row["accuracy_difference"] == (sum(right) - 1) / 4
        for column, interval in zip(ANSWERS, (over.nll(given), over.difference(given, reference)), strict=True):
            assert (row[f"{column}_low"], row[f"{column}_high"]) == (interval.low, interval.high)
            assert interval.low <= row[column] <= interval.high
    itself = found["afm-uniform-uniform-0.2"]
    assert [itself[f"accuracy_difference{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    same = found["afm-softmax-energy-0.2"]
    assert (same["accuracy_difference_low"], same["accuracy_difference_high"]) == (0, 0)


def test_without_questions_there_is_no_share(tmp_path: Path) -> None:
    for row in compared(Store(tmp_path), {}).values():
        assert not [name for name in row if name.startswith("accuracy")]
        assert "difference" in row


def test_without_the_uniform_point_the_share_stands_for_itself(tmp_path: Path) -> None:
    found = compared(Store(tmp_path), RIGHT, failing="afm-uniform-uniform-0.2")
    assert found.keys() == RIGHT.keys() - {"afm-uniform-uniform-0.2"}
    for row in found.values():
        assert [name for name in row if name.startswith("accuracy")] == ["accuracy", "accuracy_low", "accuracy_high"]


def shown(folder: Path, table: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> str:
    publish(folder, table)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    show(load(folder / "params.yaml"))
    return capsys.readouterr().out


def test_the_screen_has_a_table_of_right_answers_where_there_were_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = {"reference": "afm-uniform-uniform-0.2", "verdict": "undecided", "perplexity": 10.0, "nll": 2.3}
    nothing |= {"difference": 0.0, "difference_low": 0.0, "difference_high": 0.0}
    table = [row | nothing | compared(Store(tmp_path / "store"), RIGHT)[row["point"]] for row in rows(*GIVEN)]
    told = shown(tmp_path, table, capsys)
    assert ACCURACY in told
    first, last = (line for line in told.splitlines() if line.strip().startswith("afm"))
    assert "10.00" in first
    assert last.split()[:2] == ["afm", "0.250"]
    assert "0.750 +50.0 (" in last
    assert "0.000 -25.0 (" in last
    assert "0.250 +0.0 (+0.0 to +0.0) ≈" in last
    assert ACCURACY not in shown(tmp_path / "blind", [row | nothing for row in rows(*GIVEN)], capsys)


def test_a_point_that_failed_has_no_share_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    share = {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "perplexity": 10.0, "nll": 2.3}
    first, *others = rows(*GIVEN)
    told = shown(tmp_path, [failed(first), *(row | share for row in others)], capsys)
    _, last = (line for line in told.splitlines() if line.strip().startswith("afm"))
    assert last.split() == ["afm", "failed", "0.500", "0.500", "0.500"]
