"""Where the steps of a flow run that can run side by side, and how many at a time (the section `runner`).

Threads of the flow are the default: the linear algebra of the tasks releases the interpreter. Dask and Ray take the same tasks to worker
processes, on this machine or on others (flows/command/clusters.py); only names of artifacts travel, so all that workers need is the store.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from prefect import Flow
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.command.engine import engine
from flows.command.ephemeral import prepare
from tasks.cache.artifact import Store
from tasks.cache.remote import remote_of
from tasks.cache.worker_check import home_of
from tasks.config.parameters import Parameters
from tasks.record.signing import check_key
from tasks.upkeep.store_lock import in_use

LEAST = 2
THREADS: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=LEAST)
"""Of the flows that have steps to run side by side, until `run` chooses by the parameters."""


def run(flow: Callable[[Parameters], Any], parameters: Parameters, **options: Any) -> Any:
    """Run a flow; if it has steps to run side by side, on the workers that its parameters name. `options` go to `prefect.Flow`."""
    if not isinstance(flow, Flow):  # something that shows or predicts, and has no store
        return flow(parameters)
    with ExitStack() as until_then:
        prepare()
        until_then.enter_context(in_use(parameters.store_path))
        until_then.enter_context(engine(flow.fn))
        if flow.task_runner is not THREADS:
            return flow.with_options(**options)(parameters)
        chosen: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=workers(parameters))
        if parameters.runner.kind != "threads":
            from flows.command.clusters import cluster

            chosen = until_then.enter_context(cluster(parameters, workers(parameters)))
        return flow.with_options(task_runner=chosen, **options)(parameters)


def workers(p: Parameters) -> int:
    """How many steps run at a time; of a cluster that is there, as many as it likes."""
    if p.runner.workers != "auto":
        return p.runner.workers
    if p.backbone.device not in ("auto", "cuda"):
        return LEAST
    import torch

    return max(LEAST, torch.cuda.device_count())


def opened(p: Parameters, *, alone: bool = False) -> Store:
    """The store of a run, with what its workers need to know of it unless the flow is `alone`.

    Raises:
        ResourceError: `store.remote` cannot be used; this is said before anything is computed.
        InputError: `store.signing_key` cannot sign.
    """
    check_key(p.store.signing_key)
    remote = remote_of(p.store.remote)
    if remote is not None:
        remote.check()
    store = Store(p.store_path, p.store.lock_timeout, remote)
    if alone or p.runner.kind == "threads":
        return store
    return replace(store, home=home_of(store.path, shared=remote is None))


@contextmanager
def share_of_cores(tasks: int) -> Iterator[None]:
    """Inside this block each of so many tasks at a time computes on its part of the cores.

    A small model gains more from half of the cores for each of two than from all cores for one. A thread takes over the number when it
    first computes.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // tasks))
    try:
        yield
    finally:
        torch.set_num_threads(before)
