"""How many tasks a flow runs at a time, and on how many cores each."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

WORKERS = 2


def runner() -> TaskRunner[Any]:
    """Threads: the linear algebra of the tasks releases the interpreter."""
    return ThreadPoolTaskRunner(max_workers=WORKERS)


@contextmanager
def share_of_cores(tasks: int = WORKERS) -> Iterator[None]:
    """Inside this block each of so many tasks at a time computes on its part of the cores.

    A small model gains more from half of the cores for each of two than from all cores for one. A thread takes over the number when it
    first computes.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // min(tasks, WORKERS)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
