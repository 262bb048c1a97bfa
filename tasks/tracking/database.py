"""Tables of a library in SQLite, created or migrated atomically: they are made in a draft and copied in one transaction.

MLflow makes its tables in 270 transactions, Prefect in 116. A process that is killed between two of them leaves an unusable file
("table ... already exists"), and two that make them at once break each other. So the tables are made in a draft next to the file, while
this process holds the file exclusively, and SQLite copies the draft into it in one transaction: a kill leaves the draft, which the next run
removes.

No content of a file is lost. Only a file without a row, which the library began and did not finish, is made anew; the tables of an earlier
version are migrated in a copy.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mgaa.errors import ResourceError
from tasks.cache.atomic import remove_stale_drafts, temporary_folder

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

PATIENCE = 60.0
"""Seconds to wait for another process that writes to the same SQLite file."""
UNDER_WAY = "_alembic_tmp_"
"""Prefix of the name of a table while it is changed."""


@dataclass(frozen=True)
class Schema:
    """Recipe for the tables of a library.

    Attributes:
        library: its name.
        revisions: the history of its tables, as alembic has it.
        upgrade: creates them in a file, or migrates those of an earlier version.
        elsewhere: how to choose another file, for the error message.
    """

    library: str
    revisions: "Callable[[], ScriptDirectory]"
    upgrade: Callable[[Path], object]
    elsewhere: str


def make_tables(database: Path, schema: Schema) -> None:
    """Create the tables of `schema` in a file that has none, or migrate those that it has to this version.

    Raises:
        ResourceError: the file has content, and its tables cannot be migrated to this version; it was left as it is.
        sqlite3.Error, OSError: the file is no database, or cannot be written.
    """
    remove_stale_drafts(database.parent)
    with closing(sqlite3.connect(database, timeout=PATIENCE, isolation_level=None)) as target:
        if is_current(target, schema):
            return
        with lock_database(target), temporary_folder(database.parent) as folder:
            if is_current(target, schema):  # another process was faster
                return
            draft = folder / database.name
            schema.upgrade(draft)
            if not is_unfinished(target, draft, schema):
                draft = folder / f"upgraded-{database.name}"
                copy_rows(target, draft)
                _upgrade(draft, schema, database)
            with closing(sqlite3.connect(draft)) as made:
                made.backup(target)


def is_current(database: sqlite3.Connection, schema: Schema) -> bool:
    """Tell whether the tables match this version of the library."""
    revision = current_revision(database)
    return revision is not None and revision == schema.revisions().get_current_head()


def is_unfinished(database: sqlite3.Connection, draft: Path, schema: Schema) -> bool:
    """Tell whether a file holds nothing beyond a fresh one, and its tables, if any, are the first of those that the library makes."""
    with closing(sqlite3.connect(draft)) as fresh:
        known = count_rows(fresh)
    found, reached = count_rows(database), current_revision(database)
    if any(number > known.get(name.removeprefix(UNDER_WAY), 0) for name, number in found.items()):
        return False
    if reached is not None:
        return reached in {each.revision for each in schema.revisions().walk_revisions()}
    return {name.removeprefix(UNDER_WAY) for name in found} <= known.keys()


def current_revision(database: sqlite3.Connection) -> str | None:
    """Alembic revision of a file; None if there is none yet."""
    try:
        row = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return None
    return None if row is None else str(row[0])


def count_rows(database: sqlite3.Connection) -> dict[str, int]:
    """Number of rows of each table."""
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    count = 'SELECT count(*) FROM "{}"'
    return {name: database.execute(count.format(name.replace('"', '""'))).fetchone()[0] for name in names}


@contextmanager
def lock_database(database: sqlite3.Connection) -> Iterator[None]:
    """Hold the file exclusively inside the block, and until the connection is closed: other processes wait."""
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("BEGIN EXCLUSIVE")
    database.execute("COMMIT")
    yield


def copy_rows(database: sqlite3.Connection, draft: Path) -> None:
    """Copy the whole content of a file to another one."""
    with closing(sqlite3.connect(draft)) as made:
        database.backup(made)


def _upgrade(draft: Path, schema: Schema, database: Path) -> None:
    try:
        schema.upgrade(draft)
    except Exception as error:  # migrations raise whatever they stumble over
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ResourceError(
            f"{database} holds records, and its tables are not those that this version of {schema.library} expects and cannot be brought "
            f"to them ({reason}). It was left as it is: expected one that was closed in order, by this version or an earlier one. Put a "
            f"copy of it back, or move it away and a new one is made, or {schema.elsewhere}."
        ) from error
