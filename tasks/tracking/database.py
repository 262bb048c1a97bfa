"""The SQLite file of a library, whole or as it was: its tables are made beside it, and take its place in one transaction.

MLflow makes its tables in 270 transactions, Prefect in 116. A process that is killed between two of them leaves a file in which nobody can
go on ("table ... already exists"), and two that make them at once stop each other. So they are made in a draft beside it, while this
process alone has the file, and SQLite copies the draft into it in one transaction: a kill leaves the draft, which the next run removes.

What a file holds is never lost. Only one without a row, which the library began and did not finish, is made anew; the tables of an earlier
version are brought to this one in a copy.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mgaa.errors import ResourceError
from tasks.cache.atomic import sweep, temporary

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

PATIENCE = 60.0
"""Seconds to wait for another process that writes to the same SQLite file."""
UNDER_WAY = "_alembic_tmp_"
"""Before the name of a table while it is changed."""


@dataclass(frozen=True)
class Schema:
    """How a library makes its tables.

    Attributes:
        library: its name.
        revisions: the history of its tables, as alembic has it.
        upgrade: makes them in a file, or brings those of an earlier version there to this one.
        elsewhere: how another file is chosen.
    """

    library: str
    revisions: "Callable[[], ScriptDirectory]"
    upgrade: Callable[[Path], object]
    elsewhere: str


def make_whole(database: Path, schema: Schema) -> None:
    """Make the tables of `schema` in a file that has none, or brings those that it has to this version.

    Raises:
        ResourceError: it holds something, and its tables cannot be brought to this version; it was left as it is.
        sqlite3.Error, OSError: it is no database, or cannot be written.
    """
    sweep(database.parent)
    with closing(sqlite3.connect(database, timeout=PATIENCE, isolation_level=None)) as target:
        if is_current(target, schema):
            return
        with alone(target), temporary(database.parent) as folder:
            if is_current(target, schema):  # another process was faster
                return
            draft = folder / database.name
            schema.upgrade(draft)
            if not is_unfinished(target, draft, schema):
                draft = folder / f"upgraded-{database.name}"
                copy(target, draft)
                _upgrade(draft, schema, database)
            with closing(sqlite3.connect(draft)) as made:
                made.backup(target)


def is_current(database: sqlite3.Connection, schema: Schema) -> bool:
    """Whether the tables are those of this version of the library."""
    found = revision(database)
    return found is not None and found == schema.revisions().get_current_head()


def is_unfinished(database: sqlite3.Connection, draft: Path, schema: Schema) -> bool:
    """Whether a file holds nothing that a fresh one does not, and its tables, if any, are the beginnings of those of the library."""
    with closing(sqlite3.connect(draft)) as fresh:
        known = rows(fresh)
    found, reached = rows(database), revision(database)
    if any(number > known.get(name.removeprefix(UNDER_WAY), 0) for name, number in found.items()):
        return False
    if reached is not None:
        return reached in {each.revision for each in schema.revisions().walk_revisions()}
    return {name.removeprefix(UNDER_WAY) for name in found} <= known.keys()


def revision(database: sqlite3.Connection) -> str | None:
    """How far alembic has come; None where it has not begun."""
    try:
        found = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return None
    return None if found is None else str(found[0])


def rows(database: sqlite3.Connection) -> dict[str, int]:
    """How many rows each table has."""
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    count = 'SELECT count(*) FROM "{}"'
    return {name: database.execute(count.format(name.replace('"', '""'))).fetchone()[0] for name in names}


@contextmanager
def alone(database: sqlite3.Connection) -> Iterator[None]:
    """Have the file alone inside the block, and until the connection is closed: others wait."""
    database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute("BEGIN EXCLUSIVE")
    database.execute("COMMIT")
    yield


def copy(database: sqlite3.Connection, draft: Path) -> None:
    """Copy all that a file holds to another one."""
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
