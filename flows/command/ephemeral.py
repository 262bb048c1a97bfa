"""The Prefect server that a run starts where none is configured: its database is complete, and it does not outlive its run for long.

On its first start the server would create its database in many transactions. It is created beforehand, atomically
(tasks/tracking/database.py), so that neither a kill at that moment nor concurrent first runs can corrupt it. For the same reason the server
does not register Prefect's block types, which no flow here uses. A run that is killed cannot stop its server: each server carries the
process that it serves in its environment, and the next run stops those whose process is gone.
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
"""Environment variable that holds the process a server serves."""
BLOCKS = ("PREFECT_SERVER_REGISTER_BLOCKS_ON_START", "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION")
APP = "prefect.server.api.server:create_app"
"""The application in the command line of every Prefect server."""
URL = "PREFECT_API_DATABASE_CONNECTION_URL"
ELSEWHERE = "choose another folder with PREFECT_HOME=<folder>; it holds Prefect's records of runs and no results"


def prepare_server() -> None:
    """Prepare for the server that this run starts, if it starts one.

    Raises:
        ResourceError: Prefect's database cannot be written or upgraded.
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
    """Create or upgrade Prefect's database and mark it, so that the next run need not inspect it."""
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
    """Read the `user_version` of an SQLite file, after setting it to `mark` if given."""
    with closing(sqlite3.connect(database, timeout=PATIENCE, isolation_level=None)) as connection:
        if mark is not None:
            connection.execute(f"PRAGMA user_version = {mark}")
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def revisions() -> "ScriptDirectory":
    """The migrations of Prefect's tables."""
    import prefect
    from alembic.script import ScriptDirectory

    folder = Path(prefect.__file__).parent / "server" / "database" / "_migrations"
    return ScriptDirectory(str(folder), version_locations=[str(folder / "versions" / "sqlite")])


def upgrade(database: Path) -> None:
    """Create or upgrade Prefect's tables in a file, by Prefect's own command.

    Raises:
        sqlite3.OperationalError: the command fails.
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
    """Stop the servers on this machine that killed runs of this project left behind."""
    orphans = [each for each in psutil.process_iter() if is_orphan(each)]
    for each in orphans:
        each.terminate()
    _, stubborn = psutil.wait_procs(orphans, timeout=5)
    for each in stubborn:
        each.kill()


def is_orphan(server: psutil.Process) -> bool:
    """Tell whether a process is a server whose run is gone; one whose parent is the run still serves it, whatever its pid here."""
    try:
        if APP not in server.cmdline() or SERVES not in server.environ():
            return False
        run = json.loads(server.environ()[SERVES])
        return is_orphaned(run) and process_start(server.ppid()) != run["process.birth"]
    except (psutil.Error, OSError, ValueError):  # another user's process, or gone by now
        return False
