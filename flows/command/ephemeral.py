"""Prefect's own server of a run, where no other one is set: what it stands on is whole, and it does not outlive its run for long.

The server makes its database when it first starts, in many transactions; it is made whole before (tasks/tracking/database.py), so that
neither a kill in that moment nor several first runs at once can spoil it. For the same reason it does not register Prefect's own types of
blocks, which no flow here uses, and notes nowhere that it did. A run that is killed outright cannot stop its server. So a server carries
in its environment which process it serves, and the next run stops those whose process is gone.
"""

import json
import os
import re
import sqlite3
import subprocess
import sys
import zlib
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

from mgaa.errors import ResourceError
from tasks.tracking.database import PATIENCE, Schema, make_tables
from tasks.tracking.processes import is_orphaned, process_start, process_tags

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

SERVES = "MGAA_SERVES"
"""The variable in which a server has the process that it serves."""
BLOCKS = ("PREFECT_SERVER_REGISTER_BLOCKS_ON_START", "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION")
APP = "prefect.server.api.server:create_app"
"""What the command of a server of Prefect names."""
URL = "PREFECT_API_DATABASE_CONNECTION_URL"
ELSEWHERE = "choose another folder with PREFECT_HOME=<folder>; it holds Prefect's records of runs and no results"


def prepare_server() -> None:
    """Get ready for the server that this run starts, if it starts one.

    Raises:
        ResourceError: Prefect's database cannot be written, or cannot be brought to this version.
    """
    from prefect.settings import get_current_settings
    from sqlalchemy import make_url

    settings = get_current_settings()
    if settings.api.url is not None:
        return
    stop_orphans()
    os.environ |= {SERVES: json.dumps(process_tags()), **dict.fromkeys(BLOCKS, "false")}  # the server inherits it
    connection = settings.server.database.connection_url
    url = make_url(connection.get_secret_value()) if connection is not None else None
    if url is not None and url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        make_database(Path(str(url.database)))


def make_database(database: Path) -> None:
    """Make Prefect's database where it is missing, and mark it, so that the next run need not look through it."""
    from prefect import __version__

    mark = zlib.crc32(__version__.encode()) >> 1  # of 31 bits
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        if read_mark(database) != mark:
            make_tables(database, Schema("Prefect", revisions, upgrade, ELSEWHERE))
            read_mark(database, mark)
    except (OSError, sqlite3.Error) as error:
        raise ResourceError(
            f"Prefect's database {database} cannot be made ({error}). Expected a file that this process can write, and that nobody else "
            f"holds for {PATIENCE:g} s: make the folder writable, move a damaged file away, or {ELSEWHERE}."
        ) from error


def read_mark(database: Path, mark: int | None = None) -> int:
    """The number that a file carries for whoever uses it; it is set to `mark` if that is given."""
    with closing(sqlite3.connect(database, timeout=PATIENCE, isolation_level=None)) as connection:
        if mark is not None:
            connection.execute(f"PRAGMA user_version = {mark}")
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def revisions() -> "ScriptDirectory":
    """The history of Prefect's tables."""
    import prefect
    from alembic.script import ScriptDirectory

    folder = Path(prefect.__file__).parent / "server" / "database" / "_migrations"
    return ScriptDirectory(str(folder), version_locations=[str(folder / "versions" / "sqlite")])


def upgrade(database: Path) -> None:
    """Make Prefect's tables in a file, or bring those of an earlier version there to this one, by Prefect's own command.

    Raises:
        sqlite3.OperationalError: they cannot be made.
    """
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    settings = {
        URL: f"sqlite+aiosqlite:///{database}",
        URL.replace("_API_", "_SERVER_"): f"sqlite+aiosqlite:///{database}",
    }
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        told = re.findall(r"^[\w.]+: (.+)$", done.stderr, re.MULTILINE)  # the last line of each traceback
        raise sqlite3.OperationalError(told[-1] if told else f"`{' '.join(command[1:])}` ended with {done.returncode}")


def stop_orphans() -> None:
    """Stop the servers that runs of this project have left on this machine when they were killed."""
    orphans = [each for each in psutil.process_iter() if is_orphan(each)]
    for each in orphans:
        each.terminate()
    _, stubborn = psutil.wait_procs(orphans, timeout=5)
    for each in stubborn:
        each.kill()


def is_orphan(server: psutil.Process) -> bool:
    """Whether a process is a server whose run is gone; one whose parent is the run still serves it, whatever number that has here."""
    try:
        if APP not in server.cmdline() or SERVES not in server.environ():
            return False
        run = json.loads(server.environ()[SERVES])
        return is_orphaned(run) and process_start(server.ppid()) != run["process.birth"]
    except (psutil.Error, OSError, ValueError):  # another user's, or gone meanwhile
        return False
