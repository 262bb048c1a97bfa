"""Worker processes for the steps of a flow: Dask or Ray, on this machine or on an existing cluster.

Prefect's task runners do the work; this module configures them. The run and all its workers share one Prefect server. Every local worker
gets one GPU. A scheduler without workers gives up after `PATIENCE` instead of hanging. Whatever is missing is reported in one message
before anything is computed. If a worker dies, another one repeats its step and finds the completed ones in the store.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import TaskRunner

from mgaa.errors import ResourceError, UsageError
from tasks.config.parameters import Parameters

PATIENCE, ANSWER = "30s", "10s"
"""Longest time of a cluster without workers, and timeout of its scheduler."""
LOCAL = {None, "", "localhost", "127.0.0.1", "::1"}


@contextmanager
def start_cluster(params: Parameters, workers: int) -> Iterator[TaskRunner[Any]]:
    """Start a task runner over worker processes for the block.

    Raises:
        UsageError: the extra of this kind is not installed, or remote workers could not reach Prefect's server.
        ResourceError: no scheduler answers at `runner.address`, or it has no workers.
    """
    kind, address = params.runner.kind, params.runner.address
    made = {"dask": dask, "ray": ray}[kind]
    try:
        import_module(f"prefect_{kind}")
    except ImportError as error:
        raise UsageError(
            f"runner.kind is {kind!r}, but {error.name} is not installed: pip install 'mgaa[{kind}]', or set runner.kind=threads"
        ) from error
    with share_server(address), made(address, workers) as runner:
        yield runner


@contextmanager
def share_server(address: str | None) -> Iterator[None]:
    """Share one Prefect server between the flow and its workers: the configured one, or one for the block.

    Raises:
        UsageError: none is configured, and the workers are on other machines, which cannot reach a local server.
    """
    from prefect.server.api.server import SubprocessASGIServer

    if PREFECT_API_URL.value():
        yield
        return
    host = urlsplit(address if address and "://" in address else f"//{address or ''}").hostname
    if host not in LOCAL:
        raise UsageError(
            f"runner.address is {address!r}, and no server of Prefect is set that the workers there could reach: run `prefect server start "
            "--host 0.0.0.0` on a machine that all of them see, and set PREFECT_API_URL=http://<machine>:4200/api for the run"
        )
    server = SubprocessASGIServer()
    server.start()
    try:
        with temporary_settings({PREFECT_API_URL: server.api_url}):
            yield
            flush_events()
    finally:
        server.stop()


def flush_events() -> None:
    """Wait until Prefect's threads have sent their logs and events to the server."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)


@contextmanager
def dask(address: str | None, workers: int) -> Iterator[TaskRunner[Any]]:
    """Prefect's runner on a Dask cluster; a local one has one process per worker, each with one thread for steps."""
    import distributed
    from dask import config
    from prefect_dask.task_runners import DaskTaskRunner

    with ExitStack() as until_then:
        if address is None:
            options = {"nthreads": 1, "memory_limit": 0}
            specification = {
                index: {"cls": distributed.Nanny, "options": {**options, "env": card_variables(index)}}
                for index in range(workers)
            }
            scheduler = {
                "cls": distributed.Scheduler,
                "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": ":0"},
            }
            given = worker_environment(
                workers
            )  # read when libraries are imported, so it must be there before a worker, or its successor, starts
            with config.set({"distributed.nanny.pre-spawn-environ": given}), set_environment(given):
                made = distributed.SpecCluster(specification, scheduler, silence_logs=False)
            address = until_then.enter_context(made).scheduler_address
            until_then.callback(
                logging.getLogger("distributed").setLevel, logging.ERROR
            )  # its messages on closing are noise
        try:
            client = until_then.enter_context(distributed.Client(address, timeout=ANSWER, set_as_default=False))
        except (OSError, TimeoutError, ValueError) as error:
            raise ResourceError(
                f"runner.address is {address!r}, where no scheduler of Dask answers ({error}): start `dask scheduler` there, or set "
                "runner.address=null for worker processes on this machine"
            ) from error
        if not client.scheduler_info()["workers"]:
            raise ResourceError(
                f"The scheduler of Dask at {address} has no worker, expected one per GPU: start `dask worker {address} --nthreads 1`"
            )
        client.run_on_scheduler(give_up, PATIENCE)
        yield DaskTaskRunner(address=address)


def give_up(seconds: str, dask_scheduler: Any = None) -> None:
    """Let a scheduler without a limit of its own fail tasks that no worker takes for so long."""
    from dask.utils import parse_timedelta

    if dask_scheduler.no_workers_timeout is None:
        dask_scheduler.no_workers_timeout = parse_timedelta(seconds)


def worker_environment(workers: int) -> dict[str, str]:
    """Environment of one of so many local workers: a share of the cores, and no output, since the flow reports their failures."""
    share = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
    silent = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    return {"OMP_NUM_THREADS": share, **silent}


@contextmanager
def set_environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def card_variables(index: int) -> dict[str, str]:
    """Environment that shows a worker only one GPU of this machine."""
    import torch

    if (count := torch.cuda.device_count()) < 2:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = seen if len(seen) == count else [str(number) for number in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[index % count]}


@contextmanager
def ray(address: str | None, workers: int) -> Iterator[TaskRunner[Any]]:
    """Prefect's runner on a Ray cluster; with several GPUs Ray itself assigns one to every task."""
    import ray
    import torch
    from prefect_ray.context import remote_options
    from prefect_ray.task_runners import RayTaskRunner

    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        options |= {"num_cpus": workers, "num_gpus": torch.cuda.device_count(), "include_dashboard": False}
        options |= {"runtime_env": {"env_vars": worker_environment(workers)}}
    try:
        ray.init(address or "local", namespace="prefect", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"runner.address is {address!r}, where no cluster of Ray answers ({error}): start `ray start --head` there, set "
            "RAY_AUTH_MODE=token if it has a token, or set runner.address=null for worker processes on this machine"
        ) from error
    try:
        several = ray.cluster_resources().get("GPU", 0) > 1
        with remote_options(**({"num_gpus": 1} if several else {})):
            yield RayTaskRunner(address=address)
    finally:
        ray.shutdown()
