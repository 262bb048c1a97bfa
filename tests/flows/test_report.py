"""`python -m flows.report` makes the page of a run again, to the byte, from the store and the record; MLflow has it too."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from flows.command.subcommands import main
from flows.report import report
from tasks.results.report import PAGE
from tests.support.laboratory import Outcome, TinyProject

pytestmark = pytest.mark.slow

Lab = tuple[TinyProject, Outcome]


def again(lab: TinyProject, *words: str) -> int:
    return main({"report": report}, ["report", f"--params={lab.root / 'params.yaml'}", *words])


@pytest.fixture
def published(first: Lab, tmp_path: Path) -> TinyProject:
    """A copy of the laboratory with the results of its run."""
    lab = first[0].copy(tmp_path / "lab")
    shutil.copytree(first[0].root / "results", lab.root / "results")
    return lab


def test_the_page_made_again_is_the_page_of_the_run(published: TinyProject) -> None:
    page = published.root / "results" / PAGE
    before = page.read_bytes()
    page.unlink()
    assert again(published) == 0
    assert page.read_bytes() == before


def test_an_older_run_is_named_by_its_digest(published: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    before = (published.root / "results" / PAGE).read_bytes()
    (digest,) = [path.name for path in published.artifacts("run")]
    assert published.run("evaluation.tasks=[]", "evaluation.baselines=[]").code == 0
    assert (published.root / "results" / PAGE).read_bytes() != before
    assert again(published, f"run/{digest[:16]}") == 0
    assert (published.root / "results" / f"report-{digest[:12]}.html").read_bytes() == before
    assert again(published, "run/0123") == 3
    assert "begin with run/0123, expected one" in capsys.readouterr().err


def test_a_run_that_left_no_record_is_told(published: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    (published.root / "results" / "record.json").unlink()
    assert again(published) == 3
    assert "expected the record of a run" in capsys.readouterr().err


def test_a_missing_artifact_is_told(published: TinyProject, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((published.root / "results" / "record.json").read_text())
    (samples,) = record["artifacts"]["samples.mgaa"]
    (published.root / "store" / samples / "samples.json").unlink()
    assert again(published) == 3
    assert "samples.json" in capsys.readouterr().err


def test_the_report_is_in_mlflow_and_in_the_record(first: Lab) -> None:
    from mlflow import MlflowClient

    lab, _ = first
    page = (lab.root / "results" / PAGE).read_bytes()
    record = json.loads((lab.root / "results" / "record.json").read_text())
    assert record["published"][f"results/{PAGE}"] == hashlib.sha256(page).hexdigest()
    client = MlflowClient(f"sqlite:///{lab.root / 'mlflow.db'}")
    (digest,) = [path.name for path in lab.artifacts("run")]
    experiment = client.get_experiment_by_name("mgaa")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], f"tags.`run.record` = '{digest}'")[-1]
    assert [each.path for each in client.list_artifacts(run.info.run_id, "report")] == [f"report/{PAGE}"]
    assert Path(client.download_artifacts(run.info.run_id, f"report/{PAGE}")).read_bytes() == page
