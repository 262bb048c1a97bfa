"""Where steps run changes no digest; a worker that dies loses the block it was at, and all of them dying is one message."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.command import clusters
from flows.sweep import sweep
from tests.support.laboratory import BLOCKS, Outcome, TinyProject, striking
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow

Lab = tuple[TinyProject, Outcome]
ALONE = "evaluation.baselines=[]"


@contextmanager
def dask_workers(count: int) -> Iterator[Any]:
    """A client of a Dask cluster of so many worker processes; dead ones are started again."""
    import distributed

    workers = {
        index: {"cls": distributed.Nanny, "options": {"nthreads": 1, "memory_limit": 0}} for index in range(count)
    }
    scheduler = {
        "cls": distributed.Scheduler,
        "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": ":0"},
    }
    with (
        distributed.SpecCluster(workers, scheduler, silence_logs=50) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        if count:
            client.wait_for_workers(count)
        yield client


@contextmanager
def dask_worker(address: str) -> Iterator[None]:
    """A worker that nobody starts again."""
    command = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        address,
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def dask() -> Iterator[Any]:
    """Two workers, shared by the tests."""
    with dask_workers(2) as client:
        yield client


@pytest.fixture(scope="session")
def on_dask(empty: TinyProject, dask: Any, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A run on two workers, one of which was killed in the middle; look, and copy it."""
    lab = empty.copy(tmp_path_factory.mktemp("workers") / "dask", store=False)
    victim, *_ = dask.scheduler_info()["workers"]
    dask.run(exec, striking("SIGKILL", "factors", 1), {}, workers=[victim])
    return lab, lab.run(f"runner.address={address(dask)}", "runner.kind=dask")


def address(client: Any) -> str:
    return str(client.scheduler.address)


def same(part: TinyProject, whole: TinyProject) -> bool:
    """Whether the steps of a run without baselines gave what they gave in the whole run; its figures show less."""
    records = {key: record for key, record in part.records().items() if record[0] != "draw_figures"}
    return len(records) > 2 * BLOCKS and records.items() <= whole.records().items()


def effort(lab: TinyProject) -> tuple[int, int]:
    run = json.loads((lab.root / "results" / "metrics.json").read_text())["run"]
    return run["executed"], run["reused"]


@pytest.mark.nightly
def test_a_killed_dask_worker_changes_no_digest(first: Lab, on_dask: Lab) -> None:
    assert (on_dask[1].code, on_dask[1].message) == (0, "")
    assert on_dask[0].records() == first[0].records()


def test_the_steps_of_workers_are_counted_like_those_of_threads(first: Lab, on_dask: Lab) -> None:
    executed, reused = effort(on_dask[0])
    assert executed == sum(first[1].executed.values())
    assert reused <= 1  # a result that died with its worker is looked up again
    assert not list((on_dask[0].root / "store" / "executions").iterdir())


@pytest.mark.nightly
def test_ray_gives_the_digests_of_threads(first: Lab, fresh: TinyProject) -> None:
    outcome = fresh.run(ALONE, "runner.kind=ray", "runner.workers=1")
    assert (outcome.code, outcome.message) == (0, "")
    assert same(fresh, first[0])
    assert effort(fresh) == (sum(outcome.executed.values()), 0)


def test_a_sweep_runs_its_points_on_workers(on_dask: Lab, dask: Any) -> None:
    lists = ["sweep.factors=[afm]", "sweep.ratios=[uniform]", "sweep.ranks=[uniform]", "sweep.compression=[0.2,0.4]"]
    outcome = on_dask[0].run(*lists, f"runner.address={address(dask)}", "runner.kind=dask", flow=sweep)
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed["measure"] == 3
    assert "decompose" not in outcome.executed


@pytest.mark.nightly
def test_no_worker_left_is_one_message_and_the_next_run_goes_on(
    fresh: TinyProject, first: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "PATIENCE", "1s")
    with dask_workers(0) as client, dask_worker(address(client)):
        client.wait_for_workers(1)
        client.run(exec, striking("SIGKILL", "spectra", 2), {})
        outcome = fresh.run(ALONE, "runner.kind=dask", f"runner.address={address(client)}")
    assert (outcome.code, outcome.message.count("\n")) == (5, 1)
    assert outcome.message.startswith("error: The run lost its workers (")
    assert outcome.executed["decompose"] == 1
    finished = fresh.run(ALONE)
    assert (finished.code, finished.executed["decompose"]) == (0, BLOCKS - 1)
    assert "calibrate" not in finished.executed
    assert same(fresh, first[0])


def other_folder(identity: str) -> str:
    """Python after which a process finds the identity of another store where that of the run should be."""
    return f"""
import sys
done = []
def swap(event, arguments):
    if event == "open" and str(arguments[0]) == {identity!r} and not done:
        done.append(True)
        with open({identity!r}, "w") as file:
            file.write("another store")
sys.addaudithook(swap)
"""


def test_a_store_that_is_not_shared_is_one_message(on_dask: Lab, dask: Any, tmp_path: Path) -> None:
    lab = on_dask[0].copy(tmp_path / "lab")
    dask.run(exec, other_folder(str(lab.root / "store" / "identity")), {})
    outcome = lab.run("runner.kind=dask", f"runner.address={address(dask)}", "ratios.compression=0.3")
    assert (outcome.code, outcome.message.count("\n")) == (5, 1)
    assert "has no part in the store of the run" in outcome.message
    assert "store.remote=<url>" in outcome.message


def missing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    return ["runner.kind=dask"]


def unanswered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(clusters, "ANSWER", "1s")
    return ["runner.kind=dask", "runner.address=tcp://127.0.0.1:9"]


def unreachable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ["store.remote=file:///proc/no/such"]


FAULTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], list[str]], int, str]] = {
    "no package": (missing, 2, "runner.kind is 'dask', but prefect_dask is not installed: pip install 'mgaa[dask]'"),
    "no scheduler": (unanswered, 5, "runner.address is 'tcp://127.0.0.1:9', where no scheduler of Dask answers"),
    "no remote store": (unreachable, 5, "store.remote cannot be used: file:///proc/no/such/mgaa-store"),
}


@pytest.mark.parametrize(("prepare", "code", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_what_is_missing_is_said_before_anything_is_computed(
    prepare: Callable[[pytest.MonkeyPatch], list[str]],
    code: int,
    message: str,
    fresh: TinyProject,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome = fresh.run(*prepare(monkeypatch))
    assert (outcome.code, outcome.message.count("\n"), outcome.executed) == (code, 1, {})
    assert outcome.message.startswith(f"error: {message}")


def test_workers_elsewhere_need_a_server_that_they_reach() -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from mgaa.errors import UsageError

    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(UsageError, match="PREFECT_API_URL=http://<machine>:4200/api"),
        clusters.share_server("tcp://far.example.org:8786"),
    ):
        raise AssertionError
