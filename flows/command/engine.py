"""Prefect as the engine of a flow: its server is checked before the run, and its own failures become one error.

Prefect reports an unreachable server, a dead proxy or a damaged database in a hundred lines, sometimes after minutes. Such failures are
distinguished from bugs of ours by where they are raised: outside the flow's function, or in the client that talks to the server.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from tempfile import TemporaryFile
from traceback import walk_tb
from typing import Any

import httpx
from prefect.flow_engine import FlowRunTimeoutError
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from mgaa.boundary import describe_cause, via_proxy
from mgaa.errors import MgaaError, ResourceError
from mgaa.masking import masked

PATIENCE = 10.0
"""Timeout of the server check, in seconds."""


@contextmanager
def engine(function: Callable[..., Any]) -> Iterator[None]:
    """Run a flow inside the block, once its server answers.

    Raises:
        ResourceError: the server does not answer, or the engine fails.
    """
    with engine_errors(function):
        check_server()
        yield


def check_server() -> None:
    """Send one request to the configured server, or check that Prefect's own server can write its database.

    Where it cannot write, Prefect restarts that server repeatedly for as long as a slow machine might need to start it.
    """
    if url := PREFECT_API_URL.value():
        httpx.get(f"{url}/health", timeout=PATIENCE)
        return
    home = PREFECT_HOME.value()
    home.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=home):
        pass
    if (database := home / "prefect.db").exists():
        with closing(sqlite3.connect(database, timeout=PATIENCE)) as connection:
            connection.execute("PRAGMA schema_version")


@contextmanager
def engine_errors(function: Callable[..., Any]) -> Iterator[None]:
    """Translate errors raised by the engine into one `ResourceError`; those raised by `function` pass."""
    try:
        yield
    except MgaaError:
        raise
    except Exception as error:
        if not is_of_engine(error, function):
            raise
        url = PREFECT_API_URL.value()
        there = (
            f"the server at {masked(url)}{via_proxy(url)}" if url else f"a server of its own in {PREFECT_HOME.value()}"
        )
        remedy = (
            "start it, or unset PREFECT_API_URL"
            if url
            else "set PREFECT_HOME to a folder that can be written, or remove it; unset a proxy that is named"
        )
        raise ResourceError(
            f"Prefect cannot run the flow with {there} ({masked(describe_cause(error))}): {remedy}. Completed steps are cached."
        ) from error


def is_of_engine(error: Exception, function: Callable[..., Any]) -> bool:
    """Tell whether the engine raised an error: not a timeout, and raised outside the function or by the client of the server."""
    if isinstance(error, FlowRunTimeoutError):
        return False
    inside = any(frame.f_code is function.__code__ for frame, _ in walk_tb(error.__traceback__))
    return isinstance(error, httpx.HTTPError) or not inside
