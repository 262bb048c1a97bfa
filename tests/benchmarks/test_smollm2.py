"""The table of SmolLM2: rows keep to one budget and are measured once, and what the tables print follows from the cells."""

import csv
import io
import math
from typing import Any

import pytest
import torch

from benchmarks.smollm2 import METHODS, PLAN, Bench, fill, planned
from benchmarks.smollm2_tables import COLUMNS, cells_as_csv, tables
from mgaa.errors import UsageError
from tests.benchmarks.test_peers import llama, tokens

SLOW = {"lems", "bolaco", "mgaa-recovered"}
"""Rows that measure dozens of models, or train."""


@pytest.fixture
def bench() -> Bench:
    drawn = torch.randint(32, (4, 24), generator=torch.Generator().manual_seed(2))
    return Bench(llama(), None, tokens(), drawn, {"wikitext2": drawn[:2], "c4": drawn[2:]})


def fail() -> None:
    raise AssertionError("measured again")


def test_every_row_removes_what_was_asked_and_is_measured_once(bench: Bench) -> None:
    plan = [("0.3", name) for name in METHODS if name not in SLOW]
    cells: dict[str, Any] = {}
    fill(bench, cells, plan, lambda: None, None)
    for name, of_row in cells.items():
        assert "error" not in of_row["0.3"], name
        assert of_row["0.3"]["removed"] == pytest.approx(0.3, abs=0.03), name
    fill(bench, cells, plan, fail, None)


def test_a_row_that_was_deleted_is_measured_as_before(bench: Bench) -> None:
    cells: dict[str, Any] = {}
    plan = [("0.2", "uniform-afm"), ("0.2", "mgaa")]
    fill(bench, cells, plan, lambda: None, None)
    before = cells.pop("mgaa")["0.2"]
    fill(bench, cells, plan, lambda: None, None)
    assert [cells["mgaa"]["0.2"][text] for text in bench.streams] == [before[text] for text in bench.streams]


def test_a_plan_goes_by_compression_and_names_what_it_does_not_know() -> None:
    assert [*planned(["mgaa,loss@0.2,0.4"])] == [("0.2", "mgaa"), ("0.2", "loss"), ("0.4", "mgaa"), ("0.4", "loss")]
    assert {name for _, name in planned(PLAN)} == METHODS.keys()
    with pytest.raises(UsageError, match="no method mga, expected"):
        [*planned(["mga@0.2"])]
    with pytest.raises(UsageError, match="no compression"):
        [*planned(["mgaa"])]


@pytest.fixture
def tiny_table() -> dict[str, Any]:
    """Three rows at 0.2, with the same loss in every window."""

    def cell(nll: float) -> dict[str, Any]:
        text = {"nll": nll, "losses": [nll] * 4, "tokens": 1}
        return {"wikitext2": text, "c4": text, "removed": 0.2, "seconds": 1, "cpu_seconds": 2, "memory": 3e9}

    losses = {"uniform-whitened": 3.0, "uniform-afm": 2.0, "mgaa": 1.5}
    answers = {"acc": 0.5, "stderr": 0.1, "n": 25}
    return {
        "dense": cell(1.0),
        "cells": {"c4": {name: {"0.2": cell(nll)} for name, nll in losses.items()}},
        "tasks": {"dense": {"piqa": answers, "sciq": answers}},
    }


def test_a_row_has_its_increase_with_the_interval_and_its_share_of_both_uniform_rows(
    tiny_table: dict[str, Any],
) -> None:
    (row,) = (line for line in tables(tiny_table).splitlines() if line.startswith("| mgaa "))
    entry = f"{math.exp(1.5):.2f} | 0.500 (0.500 to 0.500) ▼ | 25% | 50%"
    assert row == f"| mgaa | {entry} | {entry} | 0.2000 | 2 | 3.0 |"


def test_the_mean_of_tasks_has_the_error_of_a_mean(tiny_table: dict[str, Any]) -> None:
    assert f"| mean |  | 50.0% ± {0.1 / math.sqrt(2):.1%} |" in tables(tiny_table)


def test_cells_have_their_differences_to_both_uniform_rows(tiny_table: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(cells_as_csv(tiny_table))))
    assert tuple(rows[0]) == COLUMNS
    assert [row["method"] for row in rows] == ["dense", "uniform-whitened", "uniform-afm", "mgaa"]
    assert (rows[-1]["c4_minus_afm"], rows[-1]["c4_minus_whitened"]) == ("-0.5000", "-1.5000")
    assert rows[1]["c4_minus_whitened"] == ""
