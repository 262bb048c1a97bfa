"""What Prefect raises beside a flow is one error, soon; what the flow itself raises stays what it is, and loopback knows no proxy."""

import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prefect import flow
from prefect.flow_engine import FlowRunTimeoutError
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.command.engine import engine_errors
from flows.command.runner import run_flow
from mgaa.errors import LockedError, MgaaError, ResourceError
from tasks.config.parameters import Parameters, load_parameters
from tests.support.laboratory import TinyProject
from tests.support.processes import ROOT, Project

pytestmark = pytest.mark.slow

DEAD = "http://127.0.0.1:9"


@flow(name="fine", validate_parameters=False)
def fine(parameters: Parameters) -> int:
    """Nothing."""
    return 3


@flow(name="mistaken", validate_parameters=False)
def mistaken(parameters: Parameters) -> None:
    """A mistake of ours."""
    raise KeyError("ours")


@pytest.fixture
def parameters(empty: TinyProject, tmp_path: Path) -> Parameters:
    return load_parameters(empty.copy(tmp_path / "lab", store=False).root / "params.yaml", [])


def body() -> None:
    """The function of a flow."""


@pytest.mark.parametrize(
    "raised",
    [
        *(kind("a value") for kind in (RuntimeError, OSError, ImportError, AssertionError, httpx.ConnectTimeout)),
        *(kind() for kind in (Exception, ValueError, RecursionError, TimeoutError)),
        ValueError("first line\n  second line"),
        ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
    ],
    ids=lambda raised: type(raised).__name__,
)
def test_whatever_the_engine_raises_is_one_line_with_its_cause(raised: Exception) -> None:
    with pytest.raises(ResourceError) as caught, engine_errors(body):
        raise raised
    said = str(caught.value)
    assert type(raised).__name__ in said
    assert "Prefect cannot run the flow with " in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "raised", [KeyboardInterrupt(), SystemExit(3), LockedError("wait"), FlowRunTimeoutError("late")]
)
def test_interrupts_time_limits_and_errors_that_explain_themselves_pass(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, engine_errors(body):
        raise raised
    assert caught.value is raised


def test_a_mistake_in_a_flow_stays_one(parameters: Parameters, prefect_server: str) -> None:
    assert run_flow(fine, parameters) == 3
    with pytest.raises(KeyError, match="ours"):
        run_flow(mistaken, parameters)


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/api"


@pytest.fixture
def other() -> Iterator[str]:
    """A server of something else."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@pytest.mark.parametrize("url", [f"{DEAD}/api", "http://user:secret@127.0.0.1:9/api", "nowhere", "silent", "other"])
def test_a_server_that_is_none_is_said_at_once(
    parameters: Parameters, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr("flows.command.engine.PATIENCE", 0.5)
    given = request.getfixturevalue(url) if url in ("silent", "other") else url
    with (
        temporary_settings({PREFECT_API_URL: given}),
        pytest.raises(ResourceError, match="start it, or unset PREFECT_API_URL") as caught,
    ):
        run_flow(fine, parameters)
    assert "secret" not in str(caught.value)


def test_the_proxy_before_a_server_is_named_without_its_password(
    parameters: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://user:secret@127.0.0.1:9")
    with (
        temporary_settings({PREFECT_API_URL: "http://prefect.invalid/api"}),
        pytest.raises(ResourceError, match=r"through the proxy http://\*\*\*@127.0.0.1:9") as caught,
    ):
        run_flow(fine, parameters)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("damage", ["no folder", "no database"])
def test_a_home_of_prefect_that_cannot_be_used_is_said_at_once(
    parameters: Parameters, tmp_path: Path, damage: str
) -> None:
    home = tmp_path / "home"
    if damage == "no folder":
        home.write_text("a file")
    else:
        home.mkdir()
        (home / "prefect.db").write_bytes(b"no database" * 100)
    with (
        temporary_settings({PREFECT_HOME: home}, restore_defaults={PREFECT_API_URL}),
        pytest.raises(ResourceError, match=r"set PREFECT_HOME to a folder|another folder with PREFECT_HOME"),
    ):
        run_flow(fine, parameters)


def test_what_runs_on_this_machine_is_not_asked_through_a_proxy() -> None:
    script = """
import flows
from urllib.request import proxy_bypass
print(*(bool(proxy_bypass(host)) for host in ("127.0.0.1", "localhost", "example.com", "prefect.invalid")))
"""
    for given in ("NO_PROXY", "no_proxy"):
        own = {"HTTP_PROXY": DEAD, given: "example.com", "PATH": ""}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=own, check=False
        )
        assert (done.stdout, done.stderr) == ("True True True False\n", "")


def test_a_run_needs_no_proxy(project: Project, prefect_server: str) -> None:
    dead = {name: DEAD for each in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in (each, each.lower())}
    done = project.run("-m", "flows.toy", PREFECT_API_URL=prefect_server, **dead)
    assert done.returncode == 0, done.stderr
    assert issubclass(ResourceError, MgaaError)
