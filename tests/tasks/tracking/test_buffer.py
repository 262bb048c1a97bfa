"""A run goes on without its tracking server, and everything of it is there in the end, once."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mgaa.errors import InputError, ResourceError, UsageError
from tasks.cache.artifact import Store
from tasks.config.parameters import Parameters, load_parameters
from tasks.tracking.buffer import copy_run, database, pending_runs, upload
from tasks.tracking.run import Run, track_run
from tests.support.databases import copy_database
from tests.support.finished import finished_run
from tests.support.servers import TrackingServer, free_port

pytestmark = pytest.mark.slow

OWN = {"buffer.run", "process.id", "process.birth", "mlflow.parentRunId"}
"""Tags that differ between two recordings of one run."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> TrackingServer:
    """A server that is not running."""
    return TrackingServer(tmp_path_factory.mktemp("tracking server"), free_port())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store with the buffer."""
    return tmp_path_factory.mktemp("home") / "store"


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another tracking store, which needs no process."""
    return f"sqlite:///{copy_database(tmp_path_factory.mktemp('away') / 'server.db')}"


def parameters(uri: str, home: Path, *more: str, experiment: str = "team") -> Parameters:
    where = [f"tracking.uri={uri}", f"tracking.experiment={experiment}", f"store.path={home}"]
    return load_parameters(finished_run().parameters.folder / "params.yaml", [*where, *more])


def buffered(uri: str, home: Path, *more: str, experiment: str = "team") -> Parameters:
    return parameters(uri, home, "tracking.unreachable=buffer", *more, experiment=experiment)


def work(run: Run) -> None:
    """What a run tells: children, a curve, everything of a finished run."""
    run.log_child("good", {"factors": "afm"}, {"nll": 3.5}, seconds=2.0, error=None)
    run.log_child("bad", {"factors": "svd"}, {}, seconds=0.0, error=InputError("no"))
    points = [{"step": step, "training": 1.0 / step, "validation": None, "rate": 0.1} for step in range(1, 5)]
    run.log_curve({"points": points})
    given = finished_run()
    store = Store(given.parameters.store_path)
    run.log_metrics({"perplexity/dense": 3.0})
    run.log_lineage(store, given.results.artifacts())
    run.log_texts(store, given.results.tokens)
    run.log_files("results", sorted(given.parameters.results.glob("*.json")))


def told(client: MlflowClient, run: Any) -> dict[str, Any]:
    """Everything that MLflow has of a run and of those below it, as far as two recordings of it agree."""
    below = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{run.info.run_id}'")
    files = Path(client.download_artifacts(run.info.run_id, "", tempfile.mkdtemp(dir=os.environ["PREFECT_HOME"])))
    points = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "params": run.data.params,
        "points": {key: sorted((each.step, each.value) for each in given) for key, given in points.items()},
        "tags": {key: value for key, value in run.data.tags.items() if key not in OWN},
        "inputs": sorted(str((each.dataset.to_dictionary(), each.tags)) for each in run.inputs.dataset_inputs),
        "files": {str(path.relative_to(files)): path.read_bytes() for path in files.rglob("*") if path.is_file()},
        "children": sorted(
            (each.info.run_name, each.info.status, str(each.data.params), str(each.data.metrics)) for each in below
        ),
    }


def runs(client: MlflowClient, experiment: str = "team") -> list[Any]:
    found = client.get_experiment_by_name(experiment)
    return [] if found is None else list(client.search_runs([found.experiment_id], "tags.mlflow.parentRunId IS NULL"))


@pytest.mark.nightly
def test_a_server_that_is_killed_in_a_run_has_all_of_it_when_it_is_back(
    server: TrackingServer, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = buffered(server.uri, home)
    with pytest.MonkeyPatch.context() as patch, server.running():
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        block = track_run(params)
        record = block.__enter__()
        (open_run,) = runs(MlflowClient(server.uri))
        assert (open_run.info.status, open_run.data.params["method"]) == ("RUNNING", "mgaa")
    work(record)
    block.__exit__(None, None, None)
    assert f"MLflow cannot record in {server.uri}" in caplog.messages[-1]
    assert "the next run that reaches the server uploads it" in caplog.messages[-1]
    with track_run(params, title="a run that never saw the server"):
        pass
    original = record.client.get_run(record.id)
    expected = told(record.client, original)
    with server.running():
        assert sorted(upload(params)) == sorted(
            ["a run that never saw the server", "bad", "good", original.info.run_name]
        )
        assert upload(params) == []
        client = MlflowClient(server.uri)
        other, found = runs(client)
        assert (other.info.run_name, other.info.status) == ("a run that never saw the server", "FINISHED")
        assert (found.info.run_id, found.info.status) == (open_run.info.run_id, "FINISHED")
        assert (found.info.start_time, found.info.end_time) == (original.info.start_time, original.info.end_time)
        assert told(client, found) == expected
        assert len(expected["children"]) == 2
        assert len(expected["points"]["recovery/training"]) == 4
    assert pending_runs(record.client) == []
    assert list(database(params).parent.glob("mlruns/*/artifacts")) == []


class Cut:
    """A client whose connection is cut at one of its requests: before that is sent, or before the answer comes."""

    def __init__(self, client: MlflowClient, request: int) -> None:
        self.client, self.left = client, request

    def __getattr__(self, name: str) -> Any:
        def send(*positional: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise ConnectionError("cut")
            answer = getattr(self.client, name)(*positional, **named)
            self.left -= 1
            if self.left == 0:
                raise ConnectionError("cut")
            return answer

        return send


def test_an_upload_that_is_cut_anywhere_is_finished_by_the_next_one(away: str, home: Path) -> None:
    params = buffered(away, home, experiment="cut")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.tracking.run.deliver", lambda p: False)
        with track_run(params) as record:
            work(record)
    buffer, server = record.client, MlflowClient(params.tracking_uri)
    expected = told(buffer, buffer.get_run(record.id))
    tries = 0
    for run in pending_runs(buffer):
        while True:
            tries += 1
            try:
                assert copy_run(buffer, Cut(server, tries), run)  # type: ignore[arg-type]
                break
            except ConnectionError:
                assert run.info.run_id in {each.info.run_id for each in pending_runs(buffer)}
        tries = 0
    (found,) = runs(server, "cut")
    assert told(server, found) == expected
    assert pending_runs(buffer) == []


def test_a_run_that_was_killed_beside_its_buffer_is_told_as_failed(away: str, home: Path) -> None:
    params = buffered(away, home)
    with track_run(params) as record:
        record.client.set_tag(record.id, "process.birth", "another process")
        record.client.set_tag(record.id, "process.id", "1")
        with track_run(parameters(away, home)):  # one that records at once leaves it alone
            pass
        (mine, _) = sorted(runs(MlflowClient(params.tracking_uri)), key=lambda run: "buffer.run" not in run.data.tags)
        assert mine.info.status == "RUNNING"
        upload(params)
        mine = MlflowClient(params.tracking_uri).get_run(mine.info.run_id)
        assert (mine.info.status, "was killed" in mine.data.tags["error"]) == ("FAILED", True)
        record.client.restore_run(record.id)


def test_what_is_no_matter_of_the_network_stops_before_the_work(away: str, home: Path) -> None:
    client = MlflowClient(away)
    client.delete_experiment(client.create_experiment("gone"))
    for p in (buffered(away, home, experiment="gone"), buffered("ftp://server", home)):
        with pytest.raises(UsageError), track_run(p):
            raise AssertionError("the work has begun")
        assert pending_runs(MlflowClient(f"sqlite:///{database(p)}")) == []


def test_without_a_buffer_a_server_that_is_away_stops_before_the_work(server: TrackingServer, home: Path) -> None:
    with pytest.raises(ResourceError, match="start the server"), track_run(parameters(server.uri, home)):
        raise AssertionError("the work has begun")
    with pytest.raises(ResourceError, match="start the server"):
        upload(buffered(server.uri, home))
