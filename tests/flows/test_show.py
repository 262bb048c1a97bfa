"""The screen at the end of a run: what the results say, whole, and how to go on from there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.command.cli import main
from flows.show import fits, show, tables
from tasks.config.parameters import load_parameters
from tests.support.finished import Finished, finished_run

pytestmark = pytest.mark.slow


@pytest.fixture
def run() -> Finished:
    return finished_run()


@pytest.fixture
def copy(run: Finished, tmp_path: Path) -> Path:
    """The results of the run in a folder of their own, to be broken."""
    shutil.copytree(run.parameters.folder / "results", tmp_path / "results")
    shutil.copy(run.parameters.folder / "params.yaml", tmp_path)
    return tmp_path


def with_tasks(run: Finished, count: int) -> dict[str, Any]:
    tasks = {f"task_number_{index}": {"acc": 0.25, "stderr": 0.015} for index in range(count)}
    return {name: {**model, "tasks": tasks} for name, model in run.published["metrics"]["models"].items()}


def test_every_model_has_a_row_with_its_numbers(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    show(run.parameters)
    lines = capsys.readouterr().out.splitlines()
    for label, name in [("dense", "dense"), ("uniform", "uniform"), ("MGAA", "mgaa")]:
        model = run.published["metrics"]["models"][name]
        (row,) = [line for line in lines if line.strip().startswith(label)]
        for text in (
            f"{100 * model['compression']:.1f} %",
            f"{model['parameters']:,}",
            f"{model['perplexity']:.2f} ± {model['perplexity_stderr']:.2f}",
        ):
            assert text in row


def test_the_equal_budget_is_stated_with_what_each_model_left_of_it(
    run: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    show(run.parameters)
    told = capsys.readouterr().out
    for found in run.published["allocation"].values():
        assert f"Equal budget of {found['budget']:,} linear parameters" in told
        assert f"{found['linear_parameters']:,} ({found['slack']:,} unused)" in told


def test_the_lines_that_load_the_checkpoint_load_it(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    show(run.parameters)
    lines = capsys.readouterr().out.splitlines()
    first = next(index for index, line in enumerate(lines) if line.strip() == "import mgaa")
    code = "\n".join(line.strip() for line in lines[first : first + 3])
    loaded = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(type(model.model.layers[0].self_attn.o_proj).__name__)"],
        cwd=run.parameters.folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "LowRankLinear"


@pytest.mark.parametrize("count", [0, 1, 12])
@pytest.mark.parametrize("width", [80, 200])
def test_no_table_is_wider_than_the_terminal(run: Finished, count: int, width: int) -> None:
    found = [*tables(with_tasks(run, count), width)]
    assert all(fits(each, width) for each in found)
    assert all(len(each.columns) > 2 for each in found)  # the names, and no column alone
    headers = [str(column.header) for each in found for column in each.columns]
    assert [header for header in headers if header.startswith("task_")] == [f"task_number_{i}" for i in range(count)]
    assert (len(found) == 1) == (width == 200 and count <= 1)


def test_a_file_gets_one_plain_table_however_wide(
    copy: Path, run: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = {**run.published["metrics"], "models": with_tasks(run, 12)}
    (copy / "results" / "metrics.json").write_text(json.dumps(metrics))
    show(load_parameters(copy / "params.yaml"))
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "…" not in told
    (row,) = [line for line in told.splitlines() if line.strip().startswith("uniform")]
    assert row.count("0.250 ± 0.015") == 12


@pytest.mark.parametrize("name", ["metrics.json", "allocation.json"])
@pytest.mark.parametrize("content", [None, "", '{"models": ', "[]", '{"models": {}}', '{"mgaa": {}}'])
def test_missing_and_broken_results_are_bad_input(
    copy: Path, name: str, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / "results" / name
    path.unlink() if content is None else path.write_text(content)
    assert main(show, [f"--params={copy / 'params.yaml'}"]) == 3
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "python -m flows.compress" in told
    assert "expected" in told


def test_mlflow_is_opened_where_the_run_wrote(run: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    show(
        load_parameters(
            run.parameters.folder / "params.yaml", ["tracking.uri=http://user:secret@tracking.example:5000"]
        )
    )
    told = capsys.readouterr().out
    assert "http://***@tracking.example:5000" in told
    assert "secret" not in told


def test_a_recovered_model_is_told_apart_from_those_of_equal_budget(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics, allocations = (json.loads((copy / "results" / f"{x}.json").read_text()) for x in ("metrics", "allocation"))
    models = metrics["models"]
    models["unrecovered"] = tuned = models.pop("mgaa")
    models["mgaa"] = {**tuned, "perplexity": 0.9 * tuned["perplexity"]}
    allocations["unrecovered"] = before = allocations.pop("mgaa")
    allocations["mgaa"] = {**before, "linear_parameters": before["linear_parameters"] + 1234, "slack": -1000}
    for name, content in (("metrics", metrics), ("allocation", allocations)):
        (copy / "results" / f"{name}.json").write_text(json.dumps(content))
    show(load_parameters(copy / "params.yaml"))
    told = capsys.readouterr().out
    (budget,) = [line for line in told.splitlines() if line.startswith("Equal budget")]
    assert "before recovery" in budget
    assert "MGAA" not in budget
    assert "with 1,234 linear parameters more." in told
