"""A database of a library is whole or as it was, whenever its process is killed, and what it holds is never lost."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mgaa.errors import ResourceError
from tasks.config.parameters import load_parameters
from tasks.tracking.backend import revisions, upgrade
from tasks.tracking.database import Schema, current_revision, is_current, is_unfinished, lock_database, make_tables
from tasks.tracking.run import track_run
from tests.support.commits import Commits, content
from tests.support.finished import ROOT

MLFLOW = Schema("MLflow", revisions, upgrade, "choose another one")


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> Commits:
    """What is there after every transaction in which MLflow makes its tables."""
    return Commits(tmp_path_factory.mktemp("commits"), upgrade)


@pytest.fixture(scope="module")
def whole(commits: Commits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished database without records."""
    return commits.leave(len(commits) - 1, tmp_path_factory.mktemp("whole") / "mlflow.db")


def record(database: Path) -> str:
    """Record a run; its id."""
    parameters = load_parameters(
        ROOT / "params.yaml", [f"tracking.uri=sqlite:///{database}", "tracking.experiment=records"]
    )
    with track_run(parameters) as run:
        return run.id


def ended(database: Path, run: str) -> bool:
    return bool(MlflowClient(f"sqlite:///{database}").get_run(run).info.status == "FINISHED")


def tables(database: Path) -> list[list[str]]:
    """Columns and constraints of all tables and indexes; alembic writes constraints in no order."""
    made = [line for line in content(database) if line.startswith("CREATE")]
    return sorted(sorted(part.strip(" \t,") for part in line.splitlines()) for line in made)


@pytest.mark.slow
def test_a_creation_that_was_killed_is_recognized_after_each_of_its_transactions(
    commits: Commits, whole: Path, tmp_path: Path
) -> None:
    assert len(commits) > 200
    for number in range(0, len(commits) - 1, 7):
        with closing(sqlite3.connect(commits.leave(number, tmp_path / "mlflow.db"))) as left:
            assert not is_current(left, MLFLOW), number
            assert is_unfinished(left, whole, MLFLOW), number
    with closing(sqlite3.connect(whole)) as finished:
        assert is_current(finished, MLFLOW)


@pytest.mark.parametrize("share", [0.02, 0.97])
@pytest.mark.slow
def test_the_run_after_a_creation_that_was_killed_records_as_any_other(
    share: float, commits: Commits, whole: Path, tmp_path: Path
) -> None:
    database = commits.leave(int(share * len(commits)), tmp_path / "mlflow.db")
    run = record(database)
    assert ended(database, run)
    assert tables(database) == tables(whole)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mlflow.db", "mlruns"]


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from tasks.tracking.database import Schema, make_tables
from tasks.tracking.backend import revisions, upgrade

database = Path(sys.argv[1])
schema = Schema("MLflow", revisions, upgrade, "")
upgrade(database.with_name("warm.db"))
draw = random.Random(0)

def make(seconds):
    child = os.fork()
    if child == 0:
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM kills where nobody handles it
        make_tables(database, schema)
        os._exit(0)
    return os.waitpid(child, 0)[1]

began = time.perf_counter()
make(None)
seconds = time.perf_counter() - began
for _ in range(4):
    database.unlink()
    killed = make(draw.uniform(0.0, 1.05 * seconds))
    size = database.stat().st_size if database.exists() else 0
    print(killed, size > 0, make(None), sorted(each.name for each in database.parent.glob("*mlflow*")))
"""


@pytest.mark.slow
def test_whoever_is_killed_leaves_no_table_or_all_of_them(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "mlflow.db")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    assert [each[2:] for each in told] == [["0", "['mlflow.db']"]] * 4
    assert "14" in {each[0] for each in told}
    assert list(tmp_path.glob(".tmp-*")) == []


def put(database: Path) -> None:
    """Record an experiment by hand."""
    with closing(sqlite3.connect(database)) as left, left:
        left.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (7, 'mine', 'active')")


def test_half_of_the_tables_with_a_record_in_them_is_left_as_it_is(commits: Commits, tmp_path: Path) -> None:
    database = commits.leave(len(commits) // 2, tmp_path / "mlflow.db")
    put(database)
    before = database.read_bytes()
    with pytest.raises(
        ResourceError, match=r"holds records.*It was left as it is.*Put a copy of it back.*tracking\.uri="
    ):
        record(database)
    assert database.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mlflow.db", "mlruns"]


def test_the_tables_of_an_earlier_version_are_brought_to_this_one_with_what_they_hold(
    commits: Commits, tmp_path: Path
) -> None:
    database, earlier = tmp_path / "mlflow.db", [each.revision for each in revisions().walk_revisions()][3]
    for number in range(len(commits) // 2, len(commits)):
        with closing(sqlite3.connect(commits.leave(number, database))) as left:
            if current_revision(left) == earlier:  # the last transaction of a revision says so
                break
    put(database)
    assert ended(database, record(database))
    assert MlflowClient(f"sqlite:///{database}").get_experiment("7").name == "mine"


def test_a_file_of_another_program_keeps_its_tables(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as other:
        other.execute("CREATE TABLE customers (name TEXT)")
    assert ended(tmp_path / "mlflow.db", record(tmp_path / "mlflow.db"))
    assert "CREATE TABLE customers (name TEXT);" in content(tmp_path / "mlflow.db")


def test_a_file_that_another_process_is_making_is_waited_for(whole: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with ThreadPoolExecutor(1) as thread, closing(sqlite3.connect(whole)) as made:
        with closing(sqlite3.connect(database, isolation_level=None)) as first, lock_database(first):
            second = thread.submit(make_tables, database, MLFLOW)
            made.backup(first)
            assert not second.done()
        second.result(timeout=60)
    assert content(database) == content(whole)
