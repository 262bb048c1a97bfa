"""The store of MLflow: SQLite by default, a server or another database by one setting.

A store that cannot be used must be reported before hours of computation, so a connection is tried at once, and without MLflow's own
patience (minutes of repeated requests). The tables of a new SQLite file appear all at once (tasks/tracking/database.py), even if a process
is killed or several start at the same time. The files of a run lie in `mlruns` next to the database.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgaa.boundary import via_proxy
from mgaa.errors import ResourceError, UsageError
from tasks.config.parameters import PathSections, checkout_of
from tasks.tracking.database import PATIENCE, Schema, make_tables

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunTag

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",  # half a minute, enough for a server to restart; MLflow's default is minutes
}.items():
    os.environ.setdefault(_name, _value)  # MLflow reads them once, on import

SQLITE = "sqlite:///"
FORMS = (SQLITE, "http://", "https://", "postgresql", "mysql", "mssql")
DRIVERS = {"psycopg2": "mgaa[postgres]", "MySQLdb": "mysqlclient"}
"""Packages of database drivers whose module has another name."""
METRICS, PAIRS = 1000, 100
"""Metrics, and parameters or tags, that MLflow accepts in one call."""
BUFFERED = "buffer.run"
"""Tag of a run that was uploaded from a buffer: its id there."""


def connect(parameters: PathSections, uri: str | None = None) -> tuple["MlflowClient", str]:
    """Open a client; returns it with the id of the experiment, which is created if it is missing.

    Args:
        uri: of the store; by default that of the parameters.

    Raises:
        UsageError: `tracking.uri` has no known form, or the experiment was deleted.
    """
    uri = uri or parameters.tracking_uri
    if not uri.startswith(FORMS):
        raise UsageError(
            f"tracking.uri is {uri!r}: expected sqlite:///<file>, http(s)://<server> or the URI of another "
            "database, such as tracking.uri=sqlite:///mlflow.db."
        )
    from mlflow import MlflowClient

    check_reachable(uri)
    database = Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None
    files = (database.parent if database else checkout_of(parameters.folder)) / "mlruns"
    with prepare_database(database, files) if database else nullcontext():
        client = MlflowClient(f"{uri}?timeout={PATIENCE:g}" if database else uri)
        entry = experiment_of(
            client, parameters.tracking.experiment, None if uri.startswith("http") else files.as_uri()
        )
    if entry.lifecycle_stage != "active":
        raise UsageError(
            f"tracking.experiment is {entry.name!r}, which was deleted: expected another name, or "
            f"`mlflow experiments restore --experiment-id {entry.experiment_id}`."
        )
    return client, str(entry.experiment_id)


def experiment_of(client: "MlflowClient", name: str, place: str | None = None) -> Any:
    """Find the experiment of a name, or create it, even if another process creates it at the same time.

    Args:
        place: folder for the files of its runs; by default the server decides.
    """
    from mlflow.exceptions import MlflowException

    entry = client.get_experiment_by_name(name)
    if entry is None:
        try:
            client.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        entry = client.get_experiment_by_name(name)
    return entry


@contextmanager
def prepare_database(database: Path, files: Path) -> Iterator[None]:
    """Hold the lock of a SQLite file that is writable and has its tables; the file is created if it is missing."""
    from filelock import FileLock

    files.mkdir(parents=True, exist_ok=True)
    with FileLock(files / ".lock", timeout=PATIENCE):
        make_tables(
            database, Schema("MLflow", revisions, upgrade, f"choose another one with tracking.uri={SQLITE}<file>")
        )
        with closing(sqlite3.connect(database, timeout=PATIENCE)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        yield


def revisions() -> "ScriptDirectory":
    """History of MLflow's tables."""
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    return ScriptDirectory(str(Path(db_migrations.__file__).parent))


def upgrade(database: Path) -> None:
    """Create MLflow's tables in a file, or migrate an earlier version's, as MLflow does when it opens the file.

    The file is a draft, which may be lost in a crash: so none of the 270 transactions waits for the disk.
    """
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine_with_retry
    from sqlalchemy import event

    engine = create_sqlalchemy_engine_with_retry(f"{SQLITE}{database}")
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    engine.dispose()  # drops the connection that tested the file
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()


def log_all(
    client: "MlflowClient",
    run: str,
    *,
    metrics: Sequence["Metric"] = (),
    params: Sequence["Param"] = (),
    tags: Sequence["RunTag"] = (),
) -> None:
    """Log to a run in as few calls as MLflow allows."""
    for first in range(0, len(metrics), METRICS):
        client.log_batch(run, metrics=metrics[first : first + METRICS])
    for first in range(0, len(params), PAIRS):
        client.log_batch(run, params=params[first : first + PAIRS])
    for first in range(0, len(tags), PAIRS):
        client.log_batch(run, tags=tags[first : first + PAIRS])


def find_runs(client: "MlflowClient", experiment: str, chosen: str = "") -> list["Run"]:
    """Find all runs of an experiment that match a filter of MLflow, the newest first."""
    from mlflow.utils import get_results_from_paginated_fn

    found: list[Run] = get_results_from_paginated_fn(
        lambda number, token: client.search_runs([experiment], chosen, max_results=number, page_token=token),
        max_results_per_page=1000,
    )
    return found


def check_reachable(uri: str) -> None:
    """Contact a server or a database once; MLflow itself would retry for minutes. A SQLite file needs no check."""
    if uri.startswith("http"):
        import requests

        requests.get(uri, timeout=10)
    elif not uri.startswith(SQLITE):
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        create_engine(uri, poolclass=NullPool).connect().close()


@contextmanager
def translate_store_errors(uri: str) -> Iterator[None]:
    """Turn any error of a store into one `ResourceError`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ImportError as error:
        driver = DRIVERS.get(error.name or "", error.name)
        raise ResourceError(
            f"MLflow cannot record in {uri}: the driver of this database is not installed ({one_line(error)}). Expected it: "
            f"pip install '{driver}', or choose another store with tracking.uri=sqlite:///<file>. Finished steps are kept."
        ) from error
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise ResourceError(
            f"MLflow cannot record in {uri}{via_proxy(uri)} ({one_line(error)}). Expected a store that can be reached and written: start "
            "the server, make the file writable, or choose another one with tracking.uri=sqlite:///<file>. Finished steps are kept."
        ) from error


def tags_of(uri: str, run: str) -> dict[str, str]:
    """Tags of a run; those in SQLite are read without MLflow, whose import takes seconds.

    Raises:
        ResourceError: the store cannot be read, or has no such run.
    """
    if not uri.startswith(SQLITE):
        from mlflow import MlflowClient

        with translate_store_errors(uri):
            check_reachable(uri)
            return dict(MlflowClient(uri).get_run(run).data.tags)
    path = Path(uri.removeprefix(SQLITE))
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as database:
            known = database.execute("select 1 from runs where run_uuid = ?", (run,)).fetchone()
            tags = dict(database.execute("select key, value from tags where run_uuid = ?", (run,)).fetchall())
    except sqlite3.Error as error:
        raise ResourceError(
            f"MLflow's database {path} cannot be read ({error}): expected the one of tracking.uri."
        ) from error
    if known is None:
        raise ResourceError(f"MLflow has no run {run} in {path}: expected the id of one, as its interface shows it.")
    return tags


def run_uninterrupted(write: Callable[[], object]) -> None:
    """Run `write` to its end in a thread of its own, which Ctrl-C and SIGTERM do not reach.

    An interrupt in the middle of a transaction would leave SQLite locked by this very process, and the end of the run unrecorded.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(copy_context().run, write).result()


def one_line(error: BaseException) -> str:
    """Message of an error without line breaks."""
    return " ".join(str(error).split())
