"""What the steps of one run tell about themselves: which ran, which were reused, when, and the first failure.

A context variable carries the recorder, because Prefect copies the context into its runners' threads: a flow wraps its body in
`with recording() as executions:` and reads from them what it wants to report. Manifests hold the same times for what was computed
in earlier runs; an execution whose result was in the store already is found here only.
"""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from tasks.artifact import Artifact


@dataclass(frozen=True)
class Execution:
    """One step of a run: what it gave, and from when to when its body ran (`time.perf_counter`; equal where it was reused)."""

    task: str
    key: str
    artifact: Artifact
    reused: bool
    start: float
    end: float
    peak_rss: int


@dataclass(frozen=True)
class Recorder:
    """The executions and failures of one run."""

    executions: list[Execution] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)


current: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


@contextmanager
def recording() -> Iterator[list[Execution]]:
    """Collect the executions of a flow, those in its task runner's threads included.

    A result asked of a task that waits for a failed one is `UnfinishedRun` in Prefect, which hides what happened; the failure itself
    is raised instead.
    """
    from prefect.exceptions import UnfinishedRun

    recorder = Recorder()
    token = current.set(recorder)
    try:
        yield recorder.executions
    except UnfinishedRun:
        if not recorder.failures:
            raise
        raise recorder.failures[0] from None
    finally:
        current.reset(token)


@contextmanager
def failures() -> Iterator[None]:
    """Remember what fails in this block, and let it pass."""
    try:
        yield
    except Exception as error:
        if (recorder := current.get()) is not None:
            recorder.failures.append(error)
        raise


def forgive(error: Exception) -> None:
    """Forget a failure that turned out to be a result."""
    if (recorder := current.get()) is not None and error in recorder.failures:
        recorder.failures.remove(error)


def note(execution: Execution) -> None:
    """Tell the run's recorder, if there is one."""
    if (recorder := current.get()) is not None:
        recorder.executions.append(execution)


def busy(executions: list[Execution]) -> float:
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
