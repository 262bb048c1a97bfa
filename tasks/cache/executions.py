"""The steps of one run: which ran, which were reused, when, and the first failure.

A context variable carries the recorder, because Prefect copies the context into its runners' threads: a flow wraps its body in
`with record_executions(store) as executions:` and calls `executions.collect()` where it reports. Manifests hold the same times for what was
computed in earlier runs; an execution whose result was in the store already is found here only.

A worker process has no recorder. It leaves its executions in the store, `executions/<run>/`, one small file each, where `collect` finds
them; they are removed at the end of the run.
"""

import json
import resource
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from uuid import uuid4

from mgaa.errors import MgaaError, ResourceError
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import disk_errors, write_file


@dataclass(frozen=True)
class Execution:
    """One step of a run: what it gave, and from when to when its body ran (seconds since 1970; equal where it was reused).

    Attributes:
        roots: where its code begins (tasks/cache/source.py).
    """

    task: str
    key: str
    artifact: Artifact
    reused: bool
    start: float
    end: float
    peak_rss: int
    roots: tuple[str, ...] = ()


class Executions:
    """The executions of a run: those of this process, and those that its workers leave in the store."""

    def __init__(self, store: Store | None = None) -> None:
        self._store, self._found, self._read = store, list[Execution](), set[str]()

    def add(self, execution: Execution) -> None:
        """Add one of this process."""
        self._found.append(execution)

    def collect(self) -> list[Execution]:
        """All executions so far, with those that workers have left in the store since the last call."""
        if self._store is not None and self._store.home is not None:
            for name, content in read_notes(self._store, self._read).items():
                self._read.add(name)
                note = json.loads(content)
                self._found.append(
                    Execution(**{**note, "artifact": Artifact(**note["artifact"]), "roots": tuple(note["roots"])})
                )
        return [*self._found]


@dataclass(frozen=True)
class Recorder:
    """The executions and failures of one run."""

    executions: Executions
    failures: list[Exception] = field(default_factory=list)


def keys_by(executions: Iterable[Execution]) -> dict[Artifact, str]:
    """The cache key under which a run first had each artifact: a later step may have made the same content from that very artifact."""
    found: dict[Artifact, str] = {}
    for execution in executions:
        found.setdefault(execution.artifact, execution.key)
    return found


ENGINES = {"distributed", "dask", "ray"}
current: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


@contextmanager
def record_executions(store: Store | None = None) -> Iterator[Executions]:
    """Collect the executions of a flow, those in its task runner's threads or, of a `store` with a home, in its workers included.

    A result asked of a task that waits for a failed one is `UnfinishedRun` in Prefect, which hides what happened; the failure itself
    is raised instead. What Dask and Ray raise by themselves is about workers that vanished, and is a `ResourceError`.
    """
    from prefect.exceptions import UnfinishedRun

    recorder = Recorder(Executions(store))
    if store is not None and store.home is not None and store.remote is None:
        with disk_errors(store.path):
            (store.path / notes_folder(store)).mkdir(parents=True, exist_ok=True)
    token = current.set(recorder)
    try:
        yield recorder.executions
    except UnfinishedRun:
        if not recorder.failures:
            raise
        raise recorder.failures[0] from None
    except Exception as error:
        if not any(kind.__module__.partition(".")[0] in ENGINES for kind in type(error).__mro__):
            raise
        reason = str(error).strip().splitlines()
        raise ResourceError(
            f"The run lost its workers ({type(error).__name__}: {reason[0] if reason else 'no more is said'}). Expected workers that "
            "live until the run ends; look into their logs (memory that ran out is the usual reason), start them, and start again: "
            "finished steps are kept."
        ) from error
    finally:
        current.reset(token)
        clear_notes(store)


@contextmanager
def collect_failures() -> Iterator[None]:
    """Remember what fails in this block, and let it pass."""
    try:
        yield
    except Exception as error:
        if (recorder := current.get()) is not None:
            recorder.failures.append(error)
        raise


def forget_failure(error: Exception) -> None:
    """Forget a failure that turned out to be a result."""
    if (recorder := current.get()) is not None and error in recorder.failures:
        recorder.failures.remove(error)


def record_execution(store: Store, execution: Execution) -> None:
    """Tell the run's recorder; in a worker process, leave a note in the store."""
    if (recorder := current.get()) is not None:
        recorder.executions.add(execution)
    elif store.home is not None:
        name, content = f"{notes_folder(store)}/{uuid4().hex}.json", json.dumps(asdict(execution)).encode()
        if store.remote is not None:
            store.remote.write(name, content)
        elif (store.path / notes_folder(store)).is_dir():  # else the run has ended, by the failure of another step
            with suppress(FileNotFoundError):
                write_file(store.path / name, content)


def notes_folder(store: Store) -> str:
    """Where the workers of a run leave their notes, below the store."""
    return f"executions/{store.home.run if store.home is not None else ''}"


def read_notes(store: Store, seen: set[str]) -> dict[str, bytes]:
    """The notes that workers left since they were `seen`, by name."""
    if store.remote is not None:
        return store.remote.read_all(notes_folder(store), seen)
    return {
        path.name: path.read_bytes()
        for path in (store.path / notes_folder(store)).glob("*.json")
        if path.name not in seen
    }


def clear_notes(store: Store | None) -> None:
    """Remove the notes of a run."""
    if store is None or store.home is None:
        return
    if store.remote is not None:
        with suppress(MgaaError):  # whatever ended the run is what is told
            store.remote.remove_folder(notes_folder(store))
    else:
        shutil.rmtree(store.path / notes_folder(store), ignore_errors=True)


def busy_seconds(executions: Iterable[Execution]) -> float:
    """Seconds in which at least one body ran: the length of the union of their intervals."""
    seconds, reached = 0.0, float("-inf")
    for execution in sorted(executions, key=lambda item: item.start):
        seconds += max(0.0, execution.end - max(execution.start, reached))
        reached = max(reached, execution.end)
    return seconds


def peak_rss() -> int:
    """The most memory this process has used so far, in bytes (Linux counts in kB, macOS in bytes)."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
