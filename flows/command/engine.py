"""Prefect, where it is asked to run a flow: it is reached at once or not at all, and what it raises itself is one error.

A server that is gone, a proxy that is dead and a damaged database show in Prefect as a hundred lines, some of them after minutes. They are
told from mistakes of ours by where they are raised: outside the function of the flow, or by the client that talks to the server.
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

from mgaa.boundary import cause, through
from mgaa.errors import MgaaError, ResourceError
from mgaa.masking import masked

PATIENCE = 10.0
"""Seconds for the server to answer."""


@contextmanager
def engine(function: Callable[..., Any]) -> Iterator[None]:
    """Run a flow inside, by its function, once its server is known to answer.

    Raises:
        ResourceError: there is none, or the engine fails.
    """
    with engine_errors(function):
        reach()
        yield


def reach() -> None:
    """One request, of any answer, to the server that is set; where none is, a look at where Prefect's own keeps its database.

    Prefect starts that server again and again where it cannot write, for as long as a slow machine would need to start it.
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
    """Turn what the engine raises beside `function` into one `ResourceError`; the function's own errors pass."""
    try:
        yield
    except MgaaError:
        raise
    except Exception as error:
        if not is_of_engine(error, function):
            raise
        url = PREFECT_API_URL.value()
        there = (
            f"the server at {masked(url)}{through(url)}" if url else f"a server of its own in {PREFECT_HOME.value()}"
        )
        remedy = (
            "start it, or unset PREFECT_API_URL"
            if url
            else "set PREFECT_HOME to a folder that can be written, or remove it; unset a proxy that is named"
        )
        raise ResourceError(
            f"Prefect cannot run the flow with {there} ({masked(cause(error))}): {remedy}. Finished steps are kept."
        ) from error


def is_of_engine(error: Exception, function: Callable[..., Any]) -> bool:
    """Whether an error is the engine's: not of a time limit, and raised outside the function or by the client of the server."""
    if isinstance(error, FlowRunTimeoutError):
        return False
    inside = any(frame.f_code is function.__code__ for frame, _ in walk_tb(error.__traceback__))
    return isinstance(error, httpx.HTTPError) or not inside
