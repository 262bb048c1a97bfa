"""What Prefect's own server of a run stands on is whole, and servers of runs that were killed are stopped by the next run."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from flows.command.ephemeral import APP, ELSEWHERE, SERVES, make_database, read_mark, revisions, stop_orphans, upgrade
from mgaa.errors import ResourceError
from tasks.tracking.database import Schema, count_rows, is_current, is_unfinished
from tasks.tracking.processes import process_tags
from tests.support.commits import Commits

pytestmark = pytest.mark.slow

PREFECT = Schema("Prefect", revisions, upgrade, ELSEWHERE)


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> Commits:
    """What is there after every transaction in which Prefect makes its tables."""
    return Commits(tmp_path_factory.mktemp("commits"), upgrade)


@pytest.mark.nightly
def test_a_database_that_prefect_began_is_recognized_after_each_transaction_and_made_again(
    commits: Commits, tmp_path: Path
) -> None:
    whole, database = commits.leave(len(commits) - 1, tmp_path / "whole.db"), tmp_path / "home" / "prefect.db"
    database.parent.mkdir()
    for number in range(0, len(commits) - 1, 5):
        with closing(sqlite3.connect(commits.leave(number, database))) as left:
            assert not is_current(left, PREFECT), number
            assert is_unfinished(left, whole, PREFECT), number
    commits.leave(half_a_migration(commits, database), database)
    make_database(database)
    with closing(sqlite3.connect(database)) as made, closing(sqlite3.connect(whole)) as wanted:
        assert is_current(made, PREFECT)
        assert count_rows(made) == count_rows(wanted)
    assert [each.name for each in database.parent.iterdir()] == ["prefect.db"]


def half_a_migration(commits: Commits, database: Path) -> int:
    """A transaction from which Prefect itself cannot go on: a table has the column that its next migration begins with."""
    for number in range(len(commits)):
        with closing(sqlite3.connect(commits.leave(number, database))) as left:
            columns = {column[1] for column in left.execute("PRAGMA table_info(flow_run_state)")}
            if "has_data" in columns:
                return number
    raise AssertionError("Prefect makes its tables otherwise by now")


def test_a_finished_database_is_marked_and_keeps_what_it_holds(commits: Commits, tmp_path: Path) -> None:
    database = commits.leave(len(commits) - 1, tmp_path / "prefect.db")
    with closing(sqlite3.connect(database)) as made, made:
        made.execute("INSERT INTO flow (name, tags) VALUES ('mine', '[]')")
    make_database(database)
    assert read_mark(database) > 0
    with closing(sqlite3.connect(database)) as made:
        assert made.execute("SELECT name FROM flow").fetchall() == [("mine",)]


@pytest.mark.nightly
def test_half_of_the_tables_with_a_record_in_them_is_left_as_it_is(commits: Commits, tmp_path: Path) -> None:
    database = tmp_path / "prefect.db"
    commits.leave(half_a_migration(commits, database), database)
    with closing(sqlite3.connect(database)) as left, left:
        left.execute("INSERT INTO flow (name, tags) VALUES ('mine', '[]')")
    before = database.read_bytes()
    with pytest.raises(
        ResourceError, match=r"holds records.*\(.*duplicate column.*\)\. It was left as it is.*PREFECT_HOME="
    ):
        make_database(database)
    assert database.read_bytes() == before


def test_a_database_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"Prefect's database .* cannot be made .*PREFECT_HOME=<folder>"):
        make_database(tmp_path / "file" / "prefect.db")


@contextmanager
def serving(run: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says, as a server of Prefect does, that it serves a run."""
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)", APP]
    environment = {**os.environ, SERVES: json.dumps(run)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            yield server
        finally:
            server.kill()


def test_a_server_whose_run_was_killed_is_stopped_and_one_that_is_used_is_not() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    gone = process_tags() | {"process.id": str(ended.pid), "process.birth": "1"}
    elsewhere = gone | {"process.host": "another machine"}
    inside = process_tags() | {"process.id": str(ended.pid)}  # of a container, where this process has another number
    with (
        serving(gone) as orphan,
        serving(process_tags()) as used,
        serving(elsewhere) as remote,
        serving(inside) as contained,
    ):
        stop_orphans()
        assert not psutil.pid_exists(orphan.pid)
        assert [each.poll() for each in (used, remote, contained)] == [None] * 3
