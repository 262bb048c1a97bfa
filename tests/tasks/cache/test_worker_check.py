"""A worker that cannot serve the run says so before its first step; one that can tells what it did."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from mgaa.errors import ResourceError
from tasks.cache.artifact import Artifact, Store
from tasks.cache.remote import Remote
from tasks.cache.step import record_executions, step
from tasks.cache.worker_check import identify_run
from tasks.steps.allocate_ranks import allocate_ranks


@step(kind="numbers")
def count(out: Path, store: Store, *, upto: int) -> None:
    """The numbers below `upto`."""
    (out / "numbers.txt").write_text(" ".join(str(number) for number in range(upto)))


def travelling(path: Path, remote: Remote | None = None) -> Store:
    """A store as workers get it."""
    store = Store(path, remote=remote, home=identify_run(path, shared=remote is None))
    arrived: Store = pickle.loads(pickle.dumps(store))
    assert arrived == store
    return arrived


@pytest.mark.parametrize("elsewhere", ["nothing", "another store"])
def test_a_worker_that_sees_another_folder_refuses(elsewhere: str, tmp_path: Path) -> None:
    store = travelling(tmp_path / "store")
    store.path.rename(tmp_path / "out of sight")
    if elsewhere == "another store":
        travelling(store.path)
    with pytest.raises(
        ResourceError, match=r"no part in the store of the run: .*store.path on a shared disk.*store\.remote="
    ) as told:
        count.fn(store, upto=3)
    assert str(store.path) in str(told.value)
    assert store.home is not None
    assert f"than on {store.home.host}" in str(told.value)
    assert not (store.path / "numbers").exists()


def test_runs_that_ask_a_new_store_for_its_name_at_once_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        homes = [*threads.map(lambda _: identify_run(tmp_path / "store", shared=True), range(8))]
    assert len({home.identity for home in homes}) == 1


def test_a_worker_with_a_folder_of_its_own_in_front_of_the_remote_is_welcome(tmp_path: Path) -> None:
    store = travelling(tmp_path / "store", Remote(f"file://{tmp_path / 'remote'}"))
    elsewhere = replace(store, path=tmp_path / "cache of another machine")
    assert count.fn(elsewhere, upto=3) == count.fn(store, upto=3)


def test_a_worker_with_other_code_refuses(tmp_path: Path) -> None:
    store = travelling(tmp_path / "store")
    assert store.home is not None
    with pytest.raises(ResourceError, match=r"another version of the project .* bring the checkouts to one commit"):
        count.fn(replace(store, home=replace(store.home, code="0" * 64)), upto=3)


@pytest.mark.parametrize("remote", [False, True])
def test_what_workers_executed_is_found_by_the_run_and_leaves_nothing(remote: bool, tmp_path: Path) -> None:
    store = travelling(tmp_path / "store", Remote(f"file://{tmp_path / 'remote'}") if remote else None)
    left = tmp_path / ("remote" if remote else "store") / "executions"
    results: list[Artifact] = []

    def work() -> None:  # a thread of its own has no recorder, like a process
        results.extend([count.fn(store, upto=3), count.fn(store, upto=3)])

    with record_executions(store) as executions:
        for expected in ([("count", False), ("count", True)], [("count", False), *[("count", True)] * 3]):
            worker = Thread(target=work)
            worker.start()
            worker.join()
            assert len([*left.glob("*/*.json")]) == len(expected)
            ran = executions.collect()
            assert sorted((each.task, each.reused) for each in ran) == expected
        assert executions.collect() == ran  # each is read once
        assert {each.artifact for each in ran} == set(results)
        assert all(each.start <= each.end for each in ran)
    assert not list(left.glob("*"))


def test_a_step_travels_as_its_name(tmp_path: Path) -> None:
    message = pickle.dumps(allocate_ranks)
    assert len(message) < 200
    assert pickle.loads(message) is allocate_ranks
