"""A run in MLflow says what was measured and where it came from, and ends as what it was, however it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mgaa.errors import InputError, ResourceError, UsageError
from tasks.cache.source import code_digest
from tasks.config.parameters import Parameters, load_parameters
from tasks.record.lineage import full_name
from tasks.tracking.run import track_run
from tasks.tracking.values import measurements
from tests.support.databases import copy_database
from tests.support.finished import ROOT, finished_run

EXPERIMENT = "an experiment"


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the module."""
    return copy_database(tmp_path_factory.mktemp("tracking store") / "mlflow.db")


@pytest.fixture
def client(database: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{database}")


@pytest.fixture(scope="module")
def logged(database: Path) -> Any:
    """A finished run, logged."""
    run = finished_run()
    parameters = load_parameters(run.parameters.folder / "params.yaml", [f"tracking.uri=sqlite:///{database}"])
    with track_run(parameters) as record:
        record.log(run.results, run.published, run.record)
    return record.client.get_run(record.id)


def parameters(uri: str | Path, experiment: str = EXPERIMENT, **overrides: str) -> Parameters:
    where = f"sqlite:///{uri}" if isinstance(uri, Path) else uri
    return load_parameters(
        ROOT / "params.yaml",
        [f"tracking.uri={where}", f"tracking.experiment={experiment}", *(f"{k}={v}" for k, v in overrides.items())],
    )


def last(client: MlflowClient, experiment: str = EXPERIMENT) -> Any:
    """The newest run of an experiment."""
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id], order_by=["start_time DESC"])[
        0
    ]


def test_a_finished_run_holds_every_number_of_the_results(logged: Any) -> None:
    run = finished_run()
    metrics, allocation = run.published["metrics"]["models"], run.published["allocation"]
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics == pytest.approx(measurements(run.published["metrics"], allocation))
    for model, found in allocation.items():
        assert logged.data.metrics[f"perplexity/{model}"] == pytest.approx(metrics[model]["perplexity"])
        for sublayer, each in found["sublayers"].items():
            assert logged.data.metrics[f"ratio/{model}/{sublayer}"] == pytest.approx(each["ratio"])
        for each in found["matrices"].values():
            place = f"{model}/{each['block']}.{each['matrix']}"
            assert logged.data.metrics[f"energy/{place}"] == pytest.approx(each["energy"])
            assert logged.data.metrics[f"rank/{place}"] == (each["rank"] or min(each["m"], each["n"]))


def test_a_finished_run_holds_every_parameter(logged: Any) -> None:
    flat = load_parameters(finished_run().parameters.folder / "params.yaml").flat()
    assert logged.data.params.keys() == flat.keys()
    assert logged.data.params["ratios.compression"] == str(flat["ratios.compression"])
    assert logged.data.params["evaluation.baselines"] == '["uniform"]'


def test_a_finished_run_can_be_traced_to_code_and_artifacts(logged: Any, client: MlflowClient, tmp_path: Path) -> None:
    run = finished_run()
    tags = logged.data.tags
    assert tags["code"] == code_digest()
    assert tags["artifact.ranks.mgaa"] == run.results.models["mgaa"].ranks.digest[:12]
    assert tags["artifact.spectra"].split() == [each.digest[:12] for each in run.results.spectra]
    path = client.download_artifacts(logged.info.run_id, "lineage.json", str(tmp_path))
    assert full_name(run.results.models["mgaa"].checkpoint) in json.loads(Path(path).read_text())


def test_a_finished_run_names_its_texts(logged: Any) -> None:
    inputs = {each.tags[0].value: each.dataset for each in logged.inputs.dataset_inputs}
    card = finished_run().published["metrics"]["card"]
    assert inputs.keys() == {"calibration", "validation", "evaluation"}
    assert inputs["evaluation"].digest == card["data_digest"][:32]
    assert json.loads(inputs["evaluation"].profile)["token_digest"] == card["token_digest"]


def test_a_finished_run_holds_the_figures_and_the_results(logged: Any, client: MlflowClient, database: Path) -> None:
    folder = finished_run().parameters.folder / "results"
    files = {each.path for each in client.list_artifacts(logged.info.run_id, "figures")}
    assert files == {f"figures/{each.name}" for each in (folder / "figures").iterdir() if each.suffix != ".json"}
    stored = database.parent / "mlruns" / logged.info.run_id / "artifacts"
    for each in ("metrics.json", "allocation.json"):
        assert (stored / "results" / each).read_bytes() == (folder / each).read_bytes()
    assert json.loads((stored / "evaluation_card.json").read_text()) == finished_run().published["metrics"]["card"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InputError("The file is empty:\nexpected text."), "The file is empty: expected text."),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), "interrupted (KeyboardInterrupt)"),
    ],
)
def test_a_run_that_raises_is_recorded_as_failed_with_its_error(
    database: Path, client: MlflowClient, error: BaseException, message: str
) -> None:
    with pytest.raises(type(error)), track_run(parameters(database)):
        raise error
    run = last(client)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", message)


def test_parts_of_a_run_that_ended_are_runs_below_it(database: Path, client: MlflowClient) -> None:
    with track_run(parameters(database), "sweep", "two points") as record:
        record.log_child("good", {"factors": "afm", "compression": 0.2}, {"nll": 3.5}, seconds=2.0, error=None)
        assert client.get_run(record.id).info.status == "RUNNING"
        error = InputError("The server http://user:secret@there\nis gone.")
        record.log_child("bad", {"factors": "svd"}, {}, seconds=0.0, error=error)
    parent = client.get_run(record.id)
    assert (parent.info.run_name, parent.info.status) == ("two points", "FINISHED")
    assert parent.data.tags["mlflow.source.name"] == "python -m flows.sweep"
    below = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{record.id}'")
    found = {run.info.run_name: run for run in below}
    assert found.keys() == {"good", "bad"}
    good, bad = found["good"], found["bad"]
    assert (good.info.status, good.info.end_time - good.info.start_time) == ("FINISHED", 2000)
    assert (good.data.params, good.data.metrics) == ({"factors": "afm", "compression": "0.2"}, {"nll": 3.5})
    assert (bad.info.status, bad.data.tags["error"]) == ("FAILED", "The server http://***@there is gone.")


class Interrupting(dict[str, float]):
    """Metrics; whoever reads them is interrupted."""

    def items(self) -> Any:
        signal.raise_signal(signal.SIGINT)
        return super().items()


def test_an_interrupt_cuts_no_record_in_two(database: Path, client: MlflowClient) -> None:
    with pytest.raises(KeyboardInterrupt), track_run(parameters(database)) as record:
        record.log_child("part", {}, Interrupting(nll=3.5), seconds=0.0, error=None)
    parent = client.get_run(record.id)
    assert (parent.info.status, parent.data.tags["error"]) == ("FAILED", "interrupted (KeyboardInterrupt)")
    (child,) = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{record.id}'")
    assert (child.info.status, child.data.metrics) == ("FINISHED", {"nll": 3.5})


WAITING = """
import sys, time
from flows.command.cli import main
from tasks.tracking.run import track_run

def wait(parameters):
    with track_run(parameters):
        print("running", flush=True)
        time.sleep(300)

sys.exit(main(wait))
"""


@pytest.fixture
def waiting(database: Path) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own that is in the middle of its work."""
    overrides = [f"tracking.uri=sqlite:///{database}", f"tracking.experiment={EXPERIMENT}"]
    command = [sys.executable, "-c", WAITING, *overrides]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_is_recorded_as_failed(waiting: subprocess.Popen[str], client: MlflowClient) -> None:
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(60) == 130
    run = last(client)
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "interrupted (KeyboardInterrupt)")


@pytest.mark.slow
def test_a_run_that_was_killed_is_closed_by_the_next_one(
    waiting: subprocess.Popen[str], database: Path, client: MlflowClient
) -> None:
    with track_run(parameters(database)):
        pass
    killed = client.search_runs([last(client).info.experiment_id], "attributes.status = 'RUNNING'")
    assert len(killed) == 1  # a run that lives is left alone
    waiting.kill()
    waiting.wait()
    with track_run(parameters(database)):
        pass
    run = client.get_run(killed[0].info.run_id)
    assert run.info.status == "FAILED"
    assert "was killed" in run.data.tags["error"]


@pytest.mark.slow
def test_processes_that_start_together_share_a_new_database(tmp_path: Path) -> None:
    code = WAITING.replace("time.sleep(300)", "pass")
    overrides = [f"tracking.uri=sqlite:///{tmp_path / 'new' / 'mlflow.db'}", f"tracking.experiment={EXPERIMENT}"]
    command = [sys.executable, "-c", code, *overrides]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert told == [("running\n", "")] * 2  # and MLflow and alembic say nothing
    client = MlflowClient(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["FINISHED"] * 2


def damaged(folder: Path) -> Path:
    (folder / "damaged.db").write_bytes(b"this is no database at all" * 100)
    return folder / "damaged.db"


def below_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "mlflow.db"


def a_folder(folder: Path) -> Path:
    (folder / "mlflow.db").mkdir()
    return folder / "mlflow.db"


def read_only(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    folder.chmod(0o500)
    return folder / "mlflow.db"


@pytest.mark.parametrize("make", [damaged, below_a_file, a_folder, read_only])
def test_a_database_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, make: Any) -> None:
    with (
        pytest.raises(ResourceError, match=r"(?s)MLflow cannot record in .*Expected.*tracking\.uri="),
        track_run(parameters(make(tmp_path))),
    ):
        raise AssertionError("the work has begun")


def test_a_server_that_does_not_answer_is_refused_at_once_and_its_password_is_not_told() -> None:
    with pytest.raises(ResourceError) as caught, track_run(parameters("http://user:secret@127.0.0.1:9")):
        raise AssertionError("the work has begun")
    assert "http://***@127.0.0.1:9" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "module", "package"),
    [("postgresql://db/runs", "psycopg2", "mgaa[postgres]"), ("mysql://db/runs", "MySQLdb", "mysqlclient")],
)
def test_a_driver_that_is_not_installed_is_named_with_its_command(
    uri: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with (
        pytest.raises(ResourceError, match=rf"MLflow cannot record in {uri}.*pip install '{re.escape(package)}'"),
        track_run(parameters(uri)),
    ):
        raise AssertionError("the work has begun")


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns", "sqlite://", "ftp://server"])
def test_a_uri_of_another_form_is_usage(uri: str) -> None:
    with pytest.raises(UsageError, match=r"tracking\.uri is .*expected sqlite:///"), track_run(parameters(uri)):
        raise AssertionError("the work has begun")


def test_a_deleted_experiment_is_usage(database: Path, client: MlflowClient) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UsageError, match="mlflow experiments restore"), track_run(parameters(database, "gone")):
        raise AssertionError("the work has begun")


def test_long_values_are_cut_and_kept_whole_in_a_file(database: Path, client: MlflowClient, tmp_path: Path) -> None:
    tasks = json.dumps([f"task_{index}" for index in range(1000)])
    with track_run(parameters(database, **{"evaluation.tasks": tasks})) as record:
        pass
    assert client.get_run(record.id).data.params["evaluation.tasks"].endswith("...")
    path = client.download_artifacts(record.id, "parameters.json", str(tmp_path))
    assert json.loads(json.loads(Path(path).read_text())["evaluation.tasks"]) == json.loads(tasks)


def test_the_names_of_metrics_are_legal_for_every_model(database: Path, client: MlflowClient) -> None:
    with track_run(parameters(database)) as record:
        record.log_metrics({"task (5-shot)/acc, normalised": 0.5, "x" * 300: 1.0})
    assert set(client.get_run(record.id).data.metrics) == {"task _5-shot_/acc_ normalised", "x" * 250}


def test_a_clock_that_is_set_back_gives_no_run_that_ends_before_it_starts(
    database: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with track_run(parameters(database)) as run:
        monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    told = client.get_run(run.id).info
    assert told.status == "FINISHED"
    assert 0 <= told.end_time - told.start_time < 600_000
