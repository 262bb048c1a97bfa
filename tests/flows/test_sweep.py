"""A sweep computes what its points share once and every point once, and loses none to a point that fails or to an interrupt."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml

from flows.command.cli import main
from flows.show_sweep import show
from flows.sweep import sweep
from tasks.sweep.table import COLUMNS
from tests.flows.test_faults import wide_range
from tests.support.laboratory import BLOCKS, Outcome, TinyProject, change, runs, striking
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow

GRID = ("sweep.factors=[whitened,afm]", "sweep.compression=[0.2]", "evaluation.tasks=[]")
EVERYTHING = {
    "load_backbone": 1,
    "read_texts": 1,
    "tokenize": 2,
    "calibrate": 1,
    "decompose": 2 * BLOCKS,
    "allocate_ratios": 4,
    "allocate_ranks": 8,
    "measure": 9,
}
"""Executions of a first sweep of two factorizers and four allocations; the dense model is measured as well."""


@dataclass(frozen=True)
class Swept:
    """A laboratory after a sweep of eight points, what that told, and its run and children in MLflow; look, and copy it."""

    lab: TinyProject
    outcome: Outcome
    parent: Any
    children: dict[str, Any]


@pytest.fixture(scope="module")
def swept(empty: TinyProject, tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Swept:
    lab = empty.copy(tmp_path_factory.mktemp("sweep") / "swept", store=False)
    return Swept(lab, lab.run(*GRID, flow=sweep), *runs(lab, "sweep"))


@pytest.fixture
def done(swept: Swept, tmp_path: Path) -> TinyProject:
    """A laboratory of the test's own after that sweep."""
    return swept.lab.copy(tmp_path / "done")


def table(lab: TinyProject) -> Any:
    return pandas.read_parquet(lab.root / "results" / "sweep.parquet").set_index("point")


# What is executed, and what is not


def test_what_points_share_is_executed_once_and_no_model_is_written(swept: Swept) -> None:
    lab, outcome = swept.lab, swept.outcome
    assert (outcome.code, outcome.message, outcome.executed) == (0, "", EVERYTHING)
    assert {path.name for path in (lab.root / "store").iterdir()}.isdisjoint({"factors", "checkpoint"})
    assert not (lab.root / "models").exists()


def test_the_same_sweep_again_executes_nothing_and_tells_the_same(done: TinyProject, swept: Swept) -> None:
    assert done.run(*GRID, flow=sweep) == Outcome(0, "", {})
    pandas.testing.assert_frame_equal(table(done).drop(columns="seconds"), table(swept.lab).drop(columns="seconds"))


def test_one_more_compression_executes_its_own_points_alone(done: TinyProject) -> None:
    outcome = done.run(*GRID, "sweep.compression=[0.2,0.4]", flow=sweep)
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed == {"allocate_ratios": 4, "allocate_ranks": 8, "measure": 8}
    assert len(table(done)) == 16


def test_a_point_has_the_perplexity_of_the_checkpoint_and_a_run_shares_its_spectra(
    done: TinyProject, swept: Swept
) -> None:
    outcome = done.run("evaluation.baselines=[uniform,level1,level2]", "evaluation.tasks=[]")
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed.keys() == {"tokenize", "factorize", "assemble"} | {
        "measure_perplexity",
        "evaluate",
        "generate",
        "draw_figures",
    }
    models = json.loads((done.root / "results" / "metrics.json").read_text())["models"]
    points = table(swept.lab)
    afm = points[points.factors == "afm"].set_index("allocation")
    for point, model in {"uniform": "uniform", "level1": "level1", "level2": "level2", "both": "mgaa"}.items():
        for column in ("perplexity", "nll", "parameters", "linear_parameters"):
            # kernels round by the number of threads, of which a sweep gives each of its workers a part
            assert afm[column][point] == pytest.approx(models[model][column], rel=1e-9), (point, column)
    assert afm.nll["both"] - afm.above_dense["both"] == pytest.approx(models["dense"]["nll"], rel=1e-12)


def test_points_are_tasks_of_one_run_of_the_flow_and_run_side_by_side(swept: Swept) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    run = swept.parent.data.tags["prefect.flow_run"]
    with get_client(sync_client=True) as client:
        given = FlowRunFilter.model_validate({"id": {"any_": [run]}})
        tasks = {task.name: task for task in client.read_task_runs(flow_run_filter=given)}
    points = [tasks[name] for name in table(swept.lab).index]
    assert all(point.state_name == "Completed" for point in points)
    assert all(str(point.flow_run_id) == run for point in points)
    times = []
    for path in swept.lab.artifacts("measurement"):
        manifest = json.loads((path / "manifest.json").read_text())
        times.append((datetime.fromisoformat(manifest["start"]), datetime.fromisoformat(manifest["end"])))
    assert any(a[0] < b[1] and b[0] < a[1] for a, b in combinations(times, 2))


# What is left behind


def test_the_table_has_a_row_per_point_at_equal_budgets(swept: Swept) -> None:
    found = table(swept.lab)
    assert [found.index.name, *found.columns] == [*COLUMNS]
    assert list(found.index[:4]) == [
        f"whitened-{two}-0.2" for two in ("uniform-uniform", "uniform-energy", "softmax-uniform", "softmax-energy")
    ]
    assert set(found.status) == {"measured"}
    assert found.error.isna().all()
    assert found.budget.nunique() == 1
    assert ((found.linear_parameters + found.slack) == found.budget).all()
    assert (found.reached >= 0.2).all()
    assert ((found.nll_low < found.nll) & (found.nll < found.nll_high)).all()
    assert (found.seconds > 0).all()
    assert (found.evaluation_seconds > 0).all()


def test_every_point_is_compared_with_the_uniform_one_of_its_factorizer(swept: Swept) -> None:
    found = table(swept.lab)
    assert (found.reference == found.factors + "-uniform-uniform-0.2").all()
    apart = found.nll - found.nll[found.reference].to_numpy()
    assert found.difference.to_numpy() == pytest.approx(apart.to_numpy(), abs=1e-12)
    itself = found[found.reference == found.index]
    assert (itself[["difference", "difference_low", "difference_high"]] == 0).all(axis=None)
    known = {(True, False): "better", (False, True): "worse", (False, False): "undecided"}
    signs = zip(found.difference_high < 0, found.difference_low > 0, strict=True)
    assert list(found.verdict) == [known[sign] for sign in signs]


def test_the_files_hold_one_and_the_same_table(swept: Swept) -> None:
    results = swept.lab.root / "results"
    assert {path.name for path in results.glob("[!.]*")} == {
        f"sweep.{kind}" for kind in ("csv", "parquet", "png", "svg", "record.json")
    }
    text = pandas.read_csv(results / "sweep.csv", index_col="point", keep_default_na=False)
    binary = table(swept.lab)
    assert [*text.columns] == [*binary.columns]
    for column in ("factors", "ratios_options", "compression", "linear_parameters", "nll", "difference_low", "verdict"):
        assert list(text[column]) == list(binary[column]), column


def test_mlflow_has_one_run_with_a_child_for_every_point(swept: Swept) -> None:
    parent, children, found = swept.parent, swept.children, table(swept.lab)
    assert (parent.info.status, parent.data.metrics["points"], parent.data.metrics["points/failed"]) == (
        "FINISHED",
        8,
        0,
    )
    assert json.loads(parent.data.params["sweep.factors"]) == [{"method": "whitened"}, {"method": "afm"}]
    assert children.keys() == {*found.index}
    for name, child in children.items():
        assert child.info.status == "FINISHED"
        assert child.info.start_time <= child.info.end_time
        for column in ("backbone", "factors", "ratios", "ratios_options", "ranks", "allocation"):
            assert child.data.params[column] == found[column][name]
        for column in ("nll", "perplexity", "linear_parameters", "slack", "evaluation_seconds"):
            assert child.data.metrics[column] == pytest.approx(found[column][name])


def test_the_sweep_in_mlflow_can_be_traced_and_holds_its_files(swept: Swept, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    lab, parent = swept.lab, swept.parent
    client = MlflowClient(yaml.safe_load((lab.root / "params.yaml").read_text())["tracking"]["uri"])
    path = Path(client.download_artifacts(parent.info.run_id, "", str(tmp_path)))
    names = {
        kind: {each.name for each in lab.artifacts(kind)} for kind in ("measurement", "ranks", "spectra", "statistics")
    }
    behind = json.loads((path / "lineage.json").read_text())
    assert {f"{kind}/{name}" for kind, each in names.items() for name in each} <= behind.keys()
    for name in ("sweep.csv", "sweep.parquet", "sweep.png", "sweep.svg"):
        assert (path / "results" / name).read_bytes() == (lab.root / "results" / name).read_bytes()


def test_the_screen_shows_factorizers_beside_allocations(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(show, [f"--params={swept.lab.root / 'params.yaml'}"]) == 0
    lines, found = capsys.readouterr().out.splitlines(), table(swept.lab)
    header = next(line for line in lines if line.strip().startswith("factors"))
    places = [header.index(name) for name in ("uniform", "level 1 only", "level 2 only", "both levels")]
    assert places == sorted(places)
    for factors in ("whitened", "afm"):
        (line,) = [line for line in lines if line.strip().startswith(f"{factors} ")]
        for point in found[found.factors == factors].itertuples():
            assert f"{point.perplexity:.2f}" in line
            assert point.allocation == "uniform" or f"{point.difference:+.4f}" in line
    assert any(f"{found.budget.iloc[0]:,} linear parameters" in line for line in lines)


@pytest.mark.parametrize("content", [None, b"", b"no table", "another"])
def test_a_missing_or_broken_table_is_bad_input(
    content: bytes | str | None, done: TinyProject, capsys: pytest.CaptureFixture[str]
) -> None:
    path = done.root / "results" / "sweep.parquet"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pandas.DataFrame({"x": [1]}).to_parquet(path)
    assert main(show, [f"--params={done.root / 'params.yaml'}"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "expected the table of a sweep" in said
    assert "python -m flows.sweep" in said


# Mistakes and faults

MISTAKES = {
    "sweep.factors=[afm,afm]": ("factors.1 is factors.0 again", set()),
    "sweep.ranks=[energi]": ("ranks.method is 'energi'", set()),
    "sweep.ranks=[{method: file, path: a.json}]": ("sweep.ratios has uniform, which has no effect", set()),
    "sweep.compression=[0.2,0.99]": ("compression 0.99 is out of reach", {"load_backbone"}),
    "sweep.ratios=[{method: softmax, temperature: -1.0}]": ("ratios.temperature is -1.0", {"load_backbone"}),
    "sweep.factors=[{method: asvd, alpha: -1.0}]": ("alpha", {"load_backbone"}),
    "sweep.factors=[afm,pooled]; statistics.groups=25": (
        "but there are 24 calibration sequences",
        {"load_backbone", "read_texts", "tokenize"},
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_is_measured(mistake: str, empty: TinyProject, tmp_path: Path) -> None:
    lab = empty.copy(tmp_path / "mistaken", store=False)
    message, before = MISTAKES[mistake]
    outcome = lab.run(*GRID, *mistake.split("; "), flow=sweep)
    assert (outcome.code, outcome.message.count("\n")) == (2, 1)
    assert message in outcome.message
    assert outcome.executed.keys() <= before
    assert not (lab.root / "results").exists()


def test_a_point_that_fails_is_told_and_loses_no_other(fresh: TinyProject, tmp_path: Path) -> None:
    model = fresh.copy_model(tmp_path / "wide")
    wide_range(model)  # at this target, level 1 leaves the projection whose factors overflow no way to stay dense
    given = [f"backbone.source={model}", "backbone.dtype=float16", "sweep.factors=[svd]", "sweep.compression=[0.02]"]
    outcome = fresh.run(*given, flow=sweep)
    assert (outcome.code, outcome.message.count("\n")) == (4, 1)
    assert outcome.message.startswith("error: 2 of 4 points failed, the others are in results/sweep.csv. svd-softmax-")
    assert "q_proj: factors of rank 23 leave the range of torch.float16: set backbone.dtype" in outcome.message
    found = table(fresh)
    assert list(found.status) == ["measured", "measured", "failed", "failed"]
    assert found.error[2:].str.contains("q_proj: factors of rank 23").all()
    assert found.nll.isna().sum() == 2
    parent, children = runs(fresh, "sweep")
    assert (parent.info.status, parent.data.tags["error"]) == (
        "FAILED",
        outcome.message.removeprefix("error: ").strip(),
    )
    assert {name: child.info.status for name, child in children.items()} == {
        name: "FINISHED" if status == "measured" else "FAILED" for name, status in found.status.items()
    }
    assert children["svd-softmax-energy-0.02"].data.tags["error"] == found.error["svd-softmax-energy-0.02"]
    again = fresh.run(*given, flow=sweep)
    assert (again.code, again.message, again.executed) == (4, outcome.message, {})


def test_a_factorizer_that_fails_is_told_for_all_its_points_and_loses_no_other(
    fresh: TinyProject, tmp_path: Path
) -> None:
    model = fresh.copy_model(tmp_path / "loud")
    change(model, "model.layers.1.input_layernorm.weight", lambda weight: weight.mul_(1e4))
    outcome = fresh.run(
        f"backbone.source={model}", *GRID, "sweep.factors=[{method: asvd, alpha: 60.0},afm]", flow=sweep
    )
    assert (outcome.code, outcome.message.count("\n")) == (4, 1)
    names = [f"asvd-{two}-0.2" for two in ("uniform-uniform", "uniform-energy", "softmax-uniform", "softmax-energy")]
    told = f"error: 4 of 8 points failed, the others are in results/sweep.csv. {', '.join(names)}: "
    assert outcome.message.startswith(told)
    assert "has non-finite entries" in outcome.message
    assert list(table(fresh).status) == ["failed"] * 4 + ["measured"] * 4
    assert [child.info.status for child in runs(fresh, "sweep")[1].values()].count("FAILED") == 4


@pytest.mark.nightly
def test_an_interrupted_sweep_keeps_the_points_that_ended(fresh: TinyProject, prefect_server: str) -> None:
    module = "import runpy\nrunpy.run_module('flows.sweep', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", f"{striking('SIGTERM', 'measurement', 7)}\n{module}"]
    given = [f"--params={fresh.root / 'params.yaml'}", *GRID]
    stopped = subprocess.run(
        [*command, *given],
        cwd=ROOT,
        env={**os.environ, "PREFECT_API_URL": prefect_server},
        text=True,
        capture_output=True,
        check=False,
    )
    assert (stopped.returncode, stopped.stderr) == (
        130,
        "interrupted: completed steps are cached; run the same command to resume\n",
    )
    parent, children = runs(fresh, "sweep")
    assert parent.info.status == "FAILED"
    assert parent.data.tags["error"].startswith("interrupted (")
    assert 1 <= len(children) < 8
    assert {child.info.status for child in children.values()} == {"FINISHED"}
    kept = len(fresh.artifacts("measurement"))
    assert kept >= 7
    assert fresh.run(*GRID, flow=sweep).executed.get("measure", 0) == 9 - kept
    assert len(table(fresh)) == 8


def test_backbones_are_compared_each_with_its_own(fresh: TinyProject, tmp_path: Path) -> None:
    other = fresh.copy_model(tmp_path / "other")
    change(other, "model.layers.0.mlp.up_proj.weight", lambda weight: weight.mul_(0.5))
    given = ["sweep.factors=[afm]", "sweep.ratios=[uniform]", "sweep.compression=[0.2]", "sweep.split=validation"]
    outcome = fresh.run(*given, f"sweep.backbone=[{fresh.model},{other}]", flow=sweep)
    assert (outcome.code, outcome.message) == (0, "")
    assert {name: outcome.executed[name] for name in ("load_backbone", "read_texts", "calibrate", "measure")} == {
        "load_backbone": 2,
        "read_texts": 1,
        "calibrate": 2,
        "measure": 6,
    }
    found = table(fresh)
    assert [name.partition("-")[0] for name in found.index] == ["model", "model", "other", "other"]
    assert list(found.reference) == [f"{name}-afm-uniform-uniform-0.2" for name in ("model", "model", "other", "other")]
    dense = (found.nll - found.above_dense).round(9)
    assert dense.nunique() == 2
