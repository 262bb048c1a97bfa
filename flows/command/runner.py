"""The workers of a flow: where its parallel steps run, and how many at a time (section `runner`).

Threads are the default, since the linear algebra of the steps releases the GIL. Dask and Ray run the same tasks in worker processes, on
this machine or others (flows/command/clusters.py); only names of artifacts travel, so all that workers need is the store.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from prefect import Flow
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.command.engine import engine
from flows.command.ephemeral import prepare_server
from tasks.cache.artifact import Store
from tasks.cache.remote import remote_of
from tasks.cache.worker_check import identify_run
from tasks.config.parameters import Parameters
from tasks.record.signing import check_key
from tasks.upkeep.store_lock import share_store

LEAST = 2
THREADS: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=LEAST)
"""Task runner of flows with parallel steps, until `run_flow` chooses one by the parameters."""


def run_flow(flow: Callable[[Parameters], Any], parameters: Parameters, **options: Any) -> Any:
    """Run a flow, its parallel steps on the workers that the parameters name. `options` go to `prefect.Flow`."""
    if not isinstance(flow, Flow):  # a command that only reads, without a store
        return flow(parameters)
    with ExitStack() as until_then:
        prepare_server()
        until_then.enter_context(share_store(parameters.store_path))
        until_then.enter_context(engine(flow.fn))
        if flow.task_runner is not THREADS:
            return flow.with_options(**options)(parameters)
        chosen: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=worker_count(parameters))
        if parameters.runner.kind != "threads":
            from flows.command.clusters import start_cluster

            chosen = until_then.enter_context(start_cluster(parameters, worker_count(parameters)))
        return flow.with_options(task_runner=chosen, **options)(parameters)


def worker_count(params: Parameters) -> int:
    """Number of steps that run at a time; an existing cluster decides for itself."""
    if params.runner.workers != "auto":
        return params.runner.workers
    if params.backbone.device not in ("auto", "cuda"):
        return LEAST
    import torch

    return max(LEAST, torch.cuda.device_count())


def open_run_store(params: Parameters, *, alone: bool = False) -> Store:
    """Open the store of a run, with what its workers need to know of it unless the flow is `alone`.

    Raises:
        ResourceError: `store.remote` cannot be used.
        InputError: `store.signing_key` cannot sign.
    """
    check_key(params.store.signing_key)
    remote = remote_of(params.store.remote)
    if remote is not None:
        remote.check()
    store = Store(params.store_path, params.store.lock_timeout, remote)
    if alone or params.runner.kind == "threads":
        return store
    return replace(store, home=identify_run(store.path, shared=remote is None))


@contextmanager
def limit_threads(tasks: int) -> Iterator[None]:
    """Share the cores between so many parallel tasks for the block.

    A small model gains more from two tasks on half of the cores each than from one on all of them. A thread adopts the number when it first
    computes.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // tasks))
    try:
        yield
    finally:
        torch.set_num_threads(before)
