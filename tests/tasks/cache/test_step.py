"""A step is computed once, for as long as nothing it depends on changes, whoever asks, however the last run ended."""

import datetime
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import flow
from prefect.states import State

from mgaa.errors import InputError, LockedError, ResourceError, UsageError
from tasks.cache import environment, stage
from tasks.cache.artifact import MANIFEST, Artifact, Store
from tasks.cache.stage import File
from tasks.cache.step import busy_seconds, record_executions, resuming_step, step
from tests.support.processes import Project, copy_project

bodies: list[str] = []


@step(kind="numbers")
def count(out: Path, store: Store, *, upto: int, start: int = 0) -> dict[str, Any]:
    """The numbers below `upto`."""
    bodies.append("count")
    (out / "numbers.txt").write_text(" ".join(str(number) for number in range(start, upto)))
    return {"count": upto - start}


@step(kind="sums")
def add(out: Path, store: Store, numbers: list[Artifact], *, options: dict[str, Any] | None = None) -> None:
    """The sum of several."""
    bodies.append("add")
    texts = [(store.folder(each) / "numbers.txt").read_text() for each in numbers]
    (out / "sum.txt").write_text(str(sum(int(number) for text in texts for number in text.split())))


@step(kind="broken")
def fail(out: Path, store: Store, numbers: Artifact) -> None:
    """An error that explains itself."""
    raise UsageError("The value is 3: expected 4; set it to 4.")


@resuming_step(kind="long")
def learn(out: Path, unfinished: Path, store: Store, *, steps: int) -> None:
    """As many lines as steps, going on with those that an interrupted run has left."""
    done = unfinished / "progress.txt"
    lines = done.read_text().split() if done.exists() else []
    for number in range(len(lines), steps):
        bodies.append(f"learn {number}")
        lines.append(str(number))
        done.write_text(" ".join(lines))
        if number == Dying.at:
            raise UsageError("The power is gone: expected some.")
    (out / "learnt.txt").write_text(" ".join(lines))


class Dying:
    """Where the next run of `learn` ends, if it does."""

    at: int | None = None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    bodies.clear()
    return Store(tmp_path / "store")


def test_the_second_call_executes_nothing(store: Store) -> None:
    assert count.fn(store, upto=3) == count.fn(store, upto=3)
    assert bodies == ["count"]


def test_the_manifest_tells_inputs_parameters_code_versions_and_times(store: Store) -> None:
    numbers = count.fn(store, upto=3)
    manifest = store.manifest(add.fn(store, [numbers], options={"a": [1, 2.5, None]}))
    assert manifest["inputs"] == {"numbers": [{"kind": "numbers", "digest": numbers.digest}]}
    assert manifest["parameters"] == {"options": {"a": [1, 2.5, None]}}
    assert "tests/tasks/cache/test_step.py" in manifest["sources"]
    assert {"python", "torch", "transformers", "safetensors", "lm_eval", "prefect", "mgaa"} <= manifest[
        "versions"
    ].keys()
    assert manifest["git"].keys() == {"commit", "dirty"}
    assert manifest["start"] <= manifest["end"]
    assert manifest["seconds"] >= 0
    assert store.manifest(numbers)["facts"] == {"count": 3}


def test_a_default_is_the_same_as_the_value_written_out(store: Store) -> None:
    assert count.fn(store, upto=3) == count.fn(store, upto=3, start=0)
    assert bodies == ["count"]


def test_a_changed_parameter_or_input_runs_again(store: Store) -> None:
    three, four = count.fn(store, upto=3), count.fn(store, upto=4)
    add.fn(store, [three])
    add.fn(store, [four])
    add.fn(store, [three, four])
    add.fn(store, [three], options={"x": 1})
    assert bodies == ["count", "count", "add", "add", "add", "add"]


def test_the_order_of_the_inputs_is_part_of_the_key(store: Store) -> None:
    three, four = count.fn(store, upto=3), count.fn(store, upto=4)
    add.fn(store, [three, four])
    add.fn(store, [four, three])
    assert bodies == ["count", "count", "add", "add"]


def test_a_file_counts_by_its_content_wherever_it_lies(store: Store, tmp_path: Path) -> None:
    numbers, one, other = count.fn(store, upto=3), tmp_path / "one.json", tmp_path / "other.json"
    one.write_text("measured today")
    other.write_text("measured today")
    add.fn(store, [numbers], options={"profile": File(one)})
    add.fn(store, [numbers], options={"profile": File(other)})
    assert bodies == ["count", "add"]
    other.write_text("measured again")
    add.fn(store, [numbers], options={"profile": File(other)})
    assert bodies == ["count", "add", "add"]
    with pytest.raises(InputError, match=r"none\.json' cannot be read .*: check the path"):
        add.fn(store, [numbers], options={"profile": File(tmp_path / "none.json")})


def test_the_versions_and_the_flags_of_the_arithmetic_are_part_of_the_key(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    count.fn(store, upto=3)
    with monkeypatch.context() as patch:
        patch.setattr(environment, "installed_version", lambda package: "of another year")
        count.fn(store, upto=3)
    assert bodies == ["count"] * 2
    torch.use_deterministic_algorithms(True)
    try:
        count.fn(store, upto=3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert bodies == ["count"] * 3
    count.fn(store, upto=3)
    assert bodies == ["count"] * 3


def test_the_kind_is_part_of_the_key(store: Store) -> None:
    def of(kind: str) -> Artifact:
        @step(kind=kind)
        def constant(out: Path, store: Store) -> None:
            (out / "constant.txt").write_text("1")

        return constant.fn(store)

    assert [of(kind).kind for kind in ("ones", "units", "ones")] == ["ones", "units", "ones"]


def test_equal_content_ends_the_recomputation(store: Store) -> None:
    empty, also_empty = count.fn(store, upto=0), count.fn(store, upto=5, start=5)
    assert empty == also_empty
    add.fn(store, [empty])
    add.fn(store, [also_empty])
    assert bodies == ["count", "count", "add"]


def test_the_place_of_the_store_is_no_part_of_the_key(store: Store, tmp_path: Path) -> None:
    artifact = count.fn(store, upto=3)
    store.path.rename(tmp_path / "elsewhere")
    assert count.fn(Store(tmp_path / "elsewhere"), upto=3) == artifact
    assert bodies == ["count"]


def test_only_plain_values_are_parameters(store: Store) -> None:
    with pytest.raises(TypeError, match=r"add\(options=...\) is a object: a step takes artifacts and plain values"):
        add.fn(store, [], options={"x": object()})


@dataclass(frozen=True)
class Method:
    """Arguments that travel together."""

    method: str
    options: dict[str, Any]
    file: stage.File


def test_a_dataclass_is_a_parameter_by_its_fields(store: Store, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("content")
    method = Method("softmax", {"temperature": 0.1}, stage.File(tmp_path / "one"))
    plain = {"method": "softmax", "options": {"temperature": 0.1}, "file": method.file.content()}
    _, parameters = stage.split_arguments("task", {"ratios": method})
    assert parameters == {"ratios": plain}
    with pytest.raises(TypeError, match=r"task\(ratios=...\) is a object"):
        stage.split_arguments("task", {"ratios": Method("softmax", {"temperature": object()}, method.file)})


@pytest.mark.parametrize("chosen", ["softmax", Method("softmax", {}, stage.File("nowhere"))], ids=["name", "dataclass"])
def test_the_code_of_a_step_is_that_of_the_method_it_is_given(chosen: object) -> None:
    def body(out: Path, store: Store, *, ratios: object) -> None:
        """Any."""

    assert stage.Step(body, "ratios", {"ratios": "mgaa.ratios"}).roots({"ratios": chosen})[1:] == [
        "mgaa.ratios.softmax"
    ]


def test_a_failing_body_leaves_no_artifact_and_no_key(store: Store) -> None:
    with pytest.raises(UsageError, match="expected 4"):
        fail.fn(store, count.fn(store, upto=3))
    assert list((store.path / "broken").iterdir()) == []
    assert len(list((store.path / "keys").iterdir())) == 1


def only(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def spoil(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, ns=(path.stat().st_mtime_ns + 10**9,) * 2)


DAMAGES: dict[str, tuple[Callable[[Path, Path], object], int]] = {
    "a flipped byte": (lambda folder, key: spoil(folder / "numbers.txt", b"0 1 3"), 1),
    "a truncated file": (lambda folder, key: spoil(folder / "numbers.txt", b"0 1"), 1),
    "a missing file": (lambda folder, key: (folder / "numbers.txt").unlink(), 1),
    "a broken manifest": (lambda folder, key: (folder / MANIFEST).write_text("{"), 1),
    "a missing artifact": (lambda folder, key: folder.rename(folder.parent.parent / "gone"), 0),
    "an empty key": (lambda folder, key: key.write_bytes(b""), 0),
    "a truncated key": (lambda folder, key: key.write_bytes(key.read_bytes()[:-20]), 0),
    "a key to nowhere": (lambda folder, key: key.write_text(key.read_text().replace(folder.name, "0" * 64)), 0),
    "a key with a path": (lambda folder, key: key.write_text(key.read_text().replace('"numbers"', '"../.."')), 0),
    "a key of another step": (lambda folder, key: key.write_text(key.read_text().replace('"upto": 3', '"upto": 4')), 0),
}


@pytest.mark.parametrize(("damage", "quarantined"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_damaged_is_reported_and_rebuilt_with_the_same_digest(
    store: Store, caplog: pytest.LogCaptureFixture, damage: Callable[[Path, Path], object], quarantined: int
) -> None:
    artifact = count.fn(store, upto=3)
    damage(store.folder(artifact), only(store.path / "keys"))
    with caplog.at_level(logging.WARNING, logger="tasks.cache.artifact"):
        assert count.fn(store, upto=3) == artifact
    assert bodies == ["count", "count"]
    (record,) = [each for each in caplog.records if each.name == "tasks.cache.artifact"]
    assert "\n" not in record.getMessage()
    assert len(list(store.path.glob("quarantine/*"))) == quarantined
    assert count.fn(store, upto=3) == artifact
    assert len(bodies) == 2


@dataclass
class Gate:
    """Two events that let a test stand inside a body."""

    entered: threading.Event
    leave: threading.Event


gate = Gate(threading.Event(), threading.Event())


@step(kind="held")
def hold(out: Path, store: Store) -> None:
    """A body that stays until it is let go."""
    bodies.append("hold")
    gate.entered.set()
    gate.leave.wait(60)
    (out / "a.txt").write_text("x")


def test_who_waits_too_long_for_another_run_is_told_whom_to_stop(store: Store) -> None:
    gate.entered.clear(), gate.leave.clear()
    holder = threading.Thread(target=hold.fn, args=(store,))
    holder.start()
    try:
        assert gate.entered.wait(60)
        with pytest.raises(LockedError, match=rf"'hold'.*process {os.getpid()} on .*store.lock_timeout"):
            hold.fn(Store(store.path, lock_timeout=0.01))
    finally:
        gate.leave.set()
        holder.join()
    assert bodies == ["hold"]


def test_who_waits_for_another_run_takes_its_result(store: Store) -> None:
    gate.entered.clear(), gate.leave.clear()
    results: list[Artifact] = []
    threads = [threading.Thread(target=lambda: results.append(hold.fn(store))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert gate.entered.wait(60)
    gate.leave.set()
    for thread in threads:
        thread.join()
    assert len(set(results)) == 1
    assert bodies == ["hold"]


def test_a_recording_tells_what_ran_and_what_was_reused(store: Store) -> None:
    with record_executions() as executions:
        numbers = count.fn(store, upto=3)
        count.fn(store, upto=3)
        add.fn(store, [numbers])
    ran = executions.collect()
    assert [(each.task, each.reused) for each in ran] == [("count", False), ("count", True), ("add", False)]
    assert ran[0].artifact == numbers
    assert 0 < busy_seconds(ran) <= ran[-1].end - ran[0].start
    assert busy_seconds(ran * 2) == busy_seconds(ran)


@flow(validate_parameters=False)
def arithmetic(store: Store, *, failing: bool = False) -> tuple[Artifact, list[State[Artifact]]]:
    """Direct calls, submitted and mapped ones."""
    with record_executions():
        first = count(store, upto=3)
        many = count.map(store, upto=[3, 4, 5])
        total = add.submit(store, many)
        if failing:
            add.submit(store, [fail.submit(store, first)]).result()
        return total.result(), [future.state for future in [*many, total]]


@pytest.mark.usefixtures("prefect_server")
def test_in_a_flow_steps_are_called_submitted_and_mapped_and_found_again_as_cached(store: Store) -> None:
    total, _ = arithmetic(store)
    assert (store.folder(total) / "sum.txt").read_text() == "19"
    assert sorted(bodies) == ["add", "count", "count", "count"]
    again, states = arithmetic(store)
    assert again == total
    assert len(bodies) == 4
    assert {state.name for state in states} == {"Cached"}


@pytest.mark.usefixtures("prefect_server")
def test_an_error_that_explains_itself_reaches_the_caller_unchanged_and_is_one_line(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError, match=r"^The value is 3: expected 4; set it to 4\.$"):
        arithmetic(store, failing=True)
    shown = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [record.getMessage() for record in shown] == ["UsageError: The value is 3: expected 4; set it to 4."]
    assert shown[0].exc_info is None


def test_new_processes_reuse_until_what_the_code_they_need_does_changes(project: Project) -> None:
    words = ("step.py", "combine", "method=total")
    first = project.run(*words)
    assert first.returncode == 0, first.stderr
    assert project.executed() == ["count", "combine"]

    arithmetic = project.root / "mgaa" / "arithmetic.py"
    os.utime(arithmetic)
    (project.root / "mgaa" / "sums" / "product.py").write_text('"""A method that nobody selected."""\n')
    (project.root / "mgaa" / "sums" / "largest.py").write_text('"""A method that nobody selected any more."""\n')
    (project.root / "mgaa" / "__init__.py").write_text('"""Another introduction."""\n')
    (project.root / "tasks" / "cache" / "step.py").open("a").write("# the machinery\n")
    assert project.run(*words).stdout == first.stdout
    assert project.executed() == []

    arithmetic.write_text(arithmetic.read_text().replace("sum(numbers)", "sum(numbers) + 1"))
    changed = project.run(*words)
    assert changed.stdout != first.stdout
    assert project.executed() == ["combine"]

    toy = project.root / "tasks" / "toy.py"
    toy.write_text(
        toy.read_text().replace("The numbers below", "Every number below") + "# another version of the steps\n"
    )
    assert project.run(*words).stdout == changed.stdout
    assert project.executed() == []

    toy.write_text(toy.read_text().replace("range(upto)", "range(0, upto)"))
    assert project.run(*words).stdout == changed.stdout
    assert project.executed() == ["count"]  # which gives what it gave, so what follows is there


def test_a_killed_run_leaves_no_half_artifact_and_the_next_one_completes_it(project: Project) -> None:
    process = project.start("step.py", "take_long", WAIT="1")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["asks\n", "half\n"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path.split("/")[-1].startswith(".tmp-") for path in project.contents()] == [True]
    done = project.run("step.py", "take_long")
    assert done.returncode == 0, done.stderr
    digest = done.stdout.split()[-1]
    assert [path for path in project.contents() if "/long/" in path] == [f"store/long/{digest}"]
    assert project.executed() == ["take_long", "take_long"]


def test_two_processes_at_once_execute_once(project: Project) -> None:
    first = project.start("step.py", "take_long", WAIT="1")
    assert first.stdout is not None
    assert [first.stdout.readline() for _ in range(2)] == ["asks\n", "half\n"]
    second = project.start("step.py", "take_long", WAIT="1")
    assert second.stdout is not None
    assert second.stdout.readline() == "asks\n"
    digest = first.communicate("go\n")[0].strip()
    assert second.communicate()[0].strip() == digest
    assert project.executed() == ["take_long"]


@pytest.mark.slow
def test_a_file_size_limit_is_one_message_and_the_store_is_unharmed(project: Project) -> None:
    small = project.run("step.py", "write_much", "size=1000")
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); runpy.run_path('step.py')"
    before = project.contents()
    failed = project.run("-c", limited, "write_much", "size=1000000")
    assert failed.returncode == 5
    assert failed.stderr.count("\n") == 1
    assert "File too large (0.1 MB written" in failed.stderr
    assert "Lift the limit of 0.1 MB a file with `ulimit -f unlimited`" in failed.stderr
    assert project.contents() == before
    assert project.run("step.py", "write_much", "size=1000").stdout == small.stdout
    assert project.run("step.py", "write_much", "size=1000000").returncode == 0


NOBODY = """
import os, runpy, sys
runpy.run_path("step.py")  # imports everything
if os.geteuid() == 0:  # root may write anywhere
    os.setgid(65534), os.setuid(65534)
runpy.run_path("step.py")
sys.argv[1:] = ["write_much", "size=10"]
runpy.run_path("step.py")
"""


def test_a_read_only_store_still_gives_what_it_holds() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        project = copy_project(Path(folder) / "project")
        held = project.run("step.py", "take_long")
        for path in [project.root / "store", *(project.root / "store").rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        refused = project.run("-c", NOBODY, "take_long")
    assert refused.stdout == held.stdout * 2 + "asks\n", refused.stderr
    assert refused.returncode == 5
    assert "Permission denied" in refused.stderr
    assert "Make the folder writable, or choose another one with store.path=" in refused.stderr


@pytest.mark.usefixtures("prefect_server")
def test_a_record_is_readable_by_prefect_and_by_people(store: Store) -> None:
    artifact = count.fn(store, upto=3)
    record = json.loads(only(store.path / "keys").read_text())
    assert {"kind": record["kind"], "digest": record["digest"]} == {"kind": artifact.kind, "digest": artifact.digest}
    assert record["stage"]["parameters"] == {"upto": 3, "start": 0}


# A step that resumes


def test_a_step_that_resumes_goes_on_where_it_was_interrupted_and_leaves_nothing_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Dying, "at", 1)
        with pytest.raises(UsageError, match="power is gone"):
            learn.fn(store, steps=4)
    found = learn.fn(store, steps=4)
    assert bodies == ["learn 0", "learn 1", "learn 2", "learn 3"]
    assert (store.folder(found) / "learnt.txt").read_text() == "0 1 2 3"
    assert list((store.path / "unfinished").iterdir()) == []
    assert found == learn.fn(Store(store.path.parent / "other"), steps=4)


def test_another_parameter_does_not_take_over_what_was_left(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Dying, "at", 1)
        with pytest.raises(UsageError):
            learn.fn(store, steps=4)
    learn.fn(store, steps=3)
    assert bodies[2:] == ["learn 0", "learn 1", "learn 2"]


def test_what_was_learnt_is_kept_until_the_result_is_remembered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Store, "remember", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(ResourceError):
            learn.fn(store, steps=2)
    bodies.clear()
    learn.fn(store, steps=2)
    assert bodies == []


class SetBack(datetime.datetime):
    """A calendar that somebody sets back by an hour whenever it is read."""

    hour = 23

    @classmethod
    def now(cls, tz: Any = None) -> "SetBack":
        SetBack.hour -= 1
        return cls(2026, 1, 1, SetBack.hour, tzinfo=tz)


def test_a_clock_that_is_set_back_gives_no_negative_duration(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "datetime", SetBack)
    with record_executions() as executions:
        made = count.fn(store, upto=3)
    told, (execution,) = store.manifest(made), executions.collect()
    start, end = (datetime.datetime.fromisoformat(told[name]) for name in ("start", "end"))
    assert (end - start).total_seconds() == pytest.approx(told["seconds"], abs=1e-5)
    assert 0 <= execution.end - execution.start == pytest.approx(told["seconds"], abs=1e-5)
    assert 0 <= busy_seconds([execution]) < 60
