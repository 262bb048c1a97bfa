"""The guide of the scheduler, executed: a server, a worker, a run that is killed with its worker, the next one, and one more."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.support.laboratory import TinyProject, build, striking
from tests.support.processes import ROOT

pytestmark = pytest.mark.nightly

GUIDE = (ROOT / "docs" / "guides" / "scheduler.md").read_text()
SERVER, DEPLOY, WORKER, RUN, OTHER = re.findall(r"^```\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
PATIENCE = 300


@dataclass(frozen=True)
class Office:
    """A laboratory with the guide's commands: what runs in the background, and what the webhook was told."""

    lab: TinyProject
    port: int
    webhook: str
    told: list[dict[str, Any]] = field(default_factory=list)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self, commands: str, **environment: str) -> subprocess.Popen[str]:
        """A block of the guide in a shell of its own, with the test's port and webhook in the place of the guide's."""
        text = commands.replace("4200", str(self.port)).replace("https://chat.example.com/hooks/secret", self.webhook)
        variables = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(self.lab.root / ".prefect"),
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_API_URL": self.api,
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "TMPDIR": str(self.lab.root),
            **environment,
        }
        shell = ["bash", "-ec", text]
        return subprocess.Popen(
            shell,
            cwd=self.lab.root,
            env={**os.environ, **variables},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def do(self, commands: str) -> str:
        """A block of the guide that ends by itself; what it says."""
        shell = self.start(commands)
        said = shell.communicate(timeout=PATIENCE)[0]
        assert shell.returncode == 0, said
        return said

    @contextmanager
    def background(self, commands: str, **environment: str) -> Iterator[psutil.Process]:
        """A block of the guide that goes on until the end of ours."""
        with (self.lab.root / "background.log").open("a") as log:
            shell = self.start(commands, **environment)
            assert shell.stdout is not None
            thread = threading.Thread(target=shutil.copyfileobj, args=(shell.stdout, log))
            thread.start()
            try:
                yield psutil.Process(shell.pid)
            finally:
                kill(shell)
                thread.join()

    def runs(self, name: str = "scheduled") -> list[dict[str, Any]]:
        """The runs of a flow that were started by hand, as the server has them, in their order."""
        given = {"flows": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found = httpx.post(f"{self.api}/flow_runs/filter", json=given, timeout=60).raise_for_status().json()
        return [each for each in found if not each["auto_scheduled"]]

    def run(self) -> dict[str, Any]:
        """Start a run as the guide says, and wait for its end."""
        before = len(self.runs())
        self.do(RUN.partition("\n")[0])
        return until(lambda: [run for run in self.runs()[before:] if run["state_type"] in ENDED])[0]


ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def until(look: Callable[[], Any]) -> Any:
    """What `look` finds, once it does."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return found


def kill(shell: subprocess.Popen[str]) -> None:
    """A process and all that it started, at once and outright."""
    if shell.poll() is None:
        for each in [psutil.Process(shell.pid), *psutil.Process(shell.pid).children(recursive=True)]:
            each.kill()
    shell.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def listening(told: list[dict[str, Any]]) -> Iterator[str]:
    """The URL of a webhook."""

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listener) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hooks/secret"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """A laboratory with a server, on which the guide's deployments are."""
    root, told = tmp_path_factory.mktemp("office"), list[dict[str, Any]]()
    lab = build(root / "lab", root / "model")
    parameters = yaml.safe_load((lab.root / "params.yaml").read_text())
    parameters["evaluation"] |= {"tasks": [], "baselines": []}
    (lab.root / "params.yaml").write_text(yaml.safe_dump(parameters))
    shutil.copy(ROOT / "prefect.yaml", lab.root)
    with listening(told) as url:
        office = Office(lab, free_port(), url, told)
        with office.background(SERVER):
            until(lambda: answers(f"{office.api}/health"))
            assert "scheduled/compress   0 2 * * *" in office.do(DEPLOY)
            yield office


def answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.HTTPError:
        return False


@pytest.fixture(scope="module")
def killed(office: Office, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that was killed with its worker before its second block was factorized."""
    fault = tmp_path_factory.mktemp("fault")
    (fault / "sitecustomize.py").write_text(striking("SIGSTOP", "factors", 2))
    with office.background(WORKER, PYTHONPATH=f"{fault}{os.pathsep}{ROOT}") as worker:
        assert "scheduled" in office.do(RUN)
        until(lambda: [each for each in worker.children(recursive=True) if stopped(each)])
    (run,) = office.runs()
    return run


def stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def next_runs(office: Office, killed: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, int]]]:
    """Two runs after that, with a new worker: the server's records, and the steps that each executed."""
    found = []
    with office.background(WORKER):
        for _ in range(2):
            before = office.lab.written()
            found.append((office.run(), office.lab.executed(before)))
    return found


def test_the_deployments_are_those_of_the_parameters(office: Office) -> None:
    schedule = yaml.safe_load((ROOT / "params.yaml").read_text())["schedule"]
    deployments = httpx.post(f"{office.api}/deployments/filter", json={}).json()
    assert {each["name"] for each in deployments} == set(schedule["cron"])
    for each in deployments:
        ((told),) = each["schedules"]
        name = each["name"]
        assert told["schedule"]["cron"] == schedule["cron"][name]
        assert told["schedule"]["timezone"] == schedule["timezone"]
        assert told["active"] is (name in schedule["active"])
        assert each["parameters"]["command"] == name
        assert each["work_pool_name"] == "mgaa"


def test_the_server_plans_the_runs_of_the_schedule(office: Office) -> None:
    def planned() -> list[str]:
        given = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
        runs = httpx.post(f"{office.api}/flow_runs/filter", json=given).json()
        return [each["expected_start_time"] for each in runs if each["auto_scheduled"]]

    times = until(planned)
    assert {time[10:19] for time in times} == {"T02:00:00"}
    assert len(set(times)) == len(times)


def test_a_run_that_was_killed_with_its_worker_is_finished_by_the_next(
    office: Office, killed: dict[str, Any], next_runs: list[tuple[dict[str, Any], dict[str, int]]]
) -> None:
    assert killed["state_type"] == "RUNNING"  # nobody was left to say otherwise
    (run, executed), _ = next_runs
    assert run["state_name"] == "Completed"
    assert executed["factorize"] in (2, 3)  # of three blocks, two of which are factorized side by side
    assert executed.keys().isdisjoint({"load_backbone", "read_texts", "tokenize", "calibrate", "decompose"})
    assert executed["assemble"] == 1


def test_the_record_of_a_killed_run_ends_as_crashed_and_the_webhook_is_told(
    office: Office, killed: dict[str, Any], next_runs: list[tuple[dict[str, Any], dict[str, int]]]
) -> None:
    assert [run["state_name"] for run in office.runs()] == ["Crashed", "Completed", "Skipped"]
    assert [run["state_name"] for run in office.runs("compress")] == ["Crashed", "Completed"]
    assert [(news["state"], news["flow_run"]) for news in office.told] == [("Crashed", killed["id"])]


def test_a_scheduled_run_appears_in_mlflow_and_exports_its_checkpoint(
    office: Office, next_runs: list[tuple[dict[str, Any], dict[str, int]]]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(yaml.safe_load((office.lab.root / "params.yaml").read_text())["tracking"]["uri"])
    found = client.search_runs([client.get_experiment_by_name("mgaa").experiment_id], order_by=["start_time"])
    assert [run.info.status for run in found] == ["FAILED", "FINISHED"]
    assert found[1].data.tags["prefect.flow_run"] == office.runs("compress")[1]["id"]
    assert (office.lab.root / "models" / "compressed" / "model.safetensors").is_file()


def test_a_run_that_would_change_nothing_ends_in_seconds_as_skipped(
    next_runs: list[tuple[dict[str, Any], dict[str, int]]],
) -> None:
    _, (run, executed) = next_runs
    end, due = (datetime.fromisoformat(run[name]) for name in ("end_time", "expected_start_time"))
    print(
        f"\nskipped {(end - due).total_seconds():.1f} s after it was due, the last {run['total_run_time']:.1f} s of them running"
    )
    assert (run["state_name"], executed) == ("Skipped", {})


def test_a_run_by_hand_takes_other_parameters(office: Office, killed: dict[str, Any]) -> None:
    office.do(OTHER)
    assert office.runs()[-1]["parameters"]["overrides"] == ["ratios.compression=0.3"]
