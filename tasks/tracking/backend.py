"""The store that MLflow writes to: SQLite by default, a server or another database by one setting.

Whatever is wrong with it must be said before hours of computation, so a connection is tried at once, and not with MLflow's own
patience (minutes of repeated requests). The tables of a new SQLite file appear together (tasks/tracking/database.py), whoever is killed
meanwhile and however many processes start at once. Files of a run lie in `mlruns` beside the database.
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
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",  # half a minute, in which a server starts again; MLflow's own patience is of minutes
}.items():
    os.environ.setdefault(_name, _value)  # MLflow reads them once, when it is imported

SQLITE = "sqlite:///"
FORMS = (SQLITE, "http://", "https://", "postgresql", "mysql", "mssql")
DRIVERS = {"psycopg2": "mgaa[postgres]", "MySQLdb": "mysqlclient"}
"""Packages of databases' drivers, where the module has another name."""
METRICS, PAIRS = 1000, 100
"""Metrics, and parameters or tags, that MLflow takes at once."""
BUFFERED = "buffer.run"
"""The tag of a run that was uploaded from a buffer: its id there."""


def connect(parameters: PathSections, uri: str | None = None) -> tuple["MlflowClient", str]:
    """A client and the id of the experiment, which is created where it is missing.

    Args:
        uri: of the store, by default that of the parameters.

    Raises:
        UsageError: `tracking.uri` is of no known form, or the experiment was deleted.
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
        found = experiment_of(
            client, parameters.tracking.experiment, None if uri.startswith("http") else files.as_uri()
        )
    if found.lifecycle_stage != "active":
        raise UsageError(
            f"tracking.experiment is {found.name!r}, which was deleted: expected another name, or "
            f"`mlflow experiments restore --experiment-id {found.experiment_id}`."
        )
    return client, str(found.experiment_id)


def experiment_of(client: "MlflowClient", name: str, place: str | None = None) -> Any:
    """The experiment of a name, created where it is missing, whoever else creates it meanwhile.

    Args:
        place: where its runs keep their files, by default where the server says.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            client.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    return found


@contextmanager
def prepare_database(database: Path, files: Path) -> Iterator[None]:
    """Hold the lock of a SQLite file that can be written and has its tables; it is made where it is missing."""
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
    """The history of MLflow's tables."""
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    return ScriptDirectory(str(Path(db_migrations.__file__).parent))


def upgrade(database: Path) -> None:
    """Make MLflow's tables in a file, or bring those of an earlier version there to this one, as MLflow does when it opens it.

    The file is a draft, which nobody misses after a crash: nothing is forced to the disk, 270 times.
    """
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine_with_retry
    from sqlalchemy import event

    engine = create_sqlalchemy_engine_with_retry(f"{SQLITE}{database}")
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
    engine.dispose()  # of the connection by which the file was tried
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
    """The runs of an experiment that a filter of MLflow chooses, the newest first, however many they are."""
    from mlflow.utils import get_results_from_paginated_fn

    found: list[Run] = get_results_from_paginated_fn(
        lambda number, token: client.search_runs([experiment], chosen, max_results=number, page_token=token),
        max_results_per_page=1000,
    )
    return found


def check_reachable(uri: str) -> None:
    """Ask a server or a database once whether it is there; MLflow would ask for minutes. A file of SQLite needs no asking."""
    if uri.startswith("http"):
        import requests

        requests.get(uri, timeout=10)
    elif not uri.startswith(SQLITE):
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        create_engine(uri, poolclass=NullPool).connect().close()


@contextmanager
def translate_store_errors(uri: str) -> Iterator[None]:
    """Turn whatever a store answers with into one `ResourceError`."""
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
    """The tags of a run; those in SQLite are read without MLflow, whose import takes seconds.

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
    """Run `write` to its end in a thread of its own, where Ctrl-C and SIGTERM do not arrive.

    An interrupt in the middle of a transaction would leave SQLite locked by this very process, and its end unrecorded.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(copy_context().run, write).result()


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())
