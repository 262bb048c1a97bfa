"""Worker processes for the steps of a flow: Dask's and Ray's, on this machine or where a scheduler waits already.

Prefect's task runners for both do the work; here is what they leave to be set. One Prefect server for the run and all its workers, instead
of one for each. One card per worker of this machine. No hang: a scheduler that has no worker left for `PATIENCE` gives up. And one message
for what is missing, before anything is computed. What a worker was computing when it died is computed again by another one, which finds in
the store whatever was finished.
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
"""How long a cluster may be without a worker, and how long its scheduler may take to answer."""
LOCAL = {None, "", "localhost", "127.0.0.1", "::1"}


@contextmanager
def cluster(p: Parameters, workers: int) -> Iterator[TaskRunner[Any]]:
    """A task runner over worker processes, for as long as the block lasts.

    Raises:
        UsageError: the extra of this kind is not installed, or workers of other machines could not reach Prefect's server.
        ResourceError: there is no scheduler at `runner.address`, or it has no worker.
    """
    kind, address = p.runner.kind, p.runner.address
    made = {"dask": dask, "ray": ray}[kind]
    try:
        import_module(f"prefect_{kind}")
    except ImportError as error:
        raise UsageError(
            f"runner.kind is {kind!r}, but {error.name} is not installed: pip install 'mgaa[{kind}]', or set runner.kind=threads"
        ) from error
    with one_server(address), made(address, workers) as runner:
        yield runner


@contextmanager
def one_server(address: str | None) -> Iterator[None]:
    """Prefect's server for the flow and its workers: the one that is set, or one that lives as long as the block.

    Raises:
        UsageError: none is set, and the workers are on other machines, which do not reach a server of this one.
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
            sent()
    finally:
        server.stop()


def sent() -> None:
    """Wait until Prefect's threads have sent what they have to say to the server."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)


@contextmanager
def dask(address: str | None, workers: int) -> Iterator[TaskRunner[Any]]:
    """Prefect's runner on a Dask cluster; of this machine, one process per worker, each with one thread for steps."""
    import distributed
    from dask import config
    from prefect_dask.task_runners import DaskTaskRunner

    with ExitStack() as until_then:
        if address is None:
            options = {"nthreads": 1, "memory_limit": 0}
            specification = {
                index: {"cls": distributed.Nanny, "options": {**options, "env": card(index)}}
                for index in range(workers)
            }
            scheduler = {
                "cls": distributed.Scheduler,
                "options": {"host": "127.0.0.1", "dashboard": False, "dashboard_address": ":0"},
            }
            given = environment(
                workers
            )  # read when libraries are imported, so it must be there before a worker, or its successor, starts
            with config.set({"distributed.nanny.pre-spawn-environ": given}), environ(given):
                made = distributed.SpecCluster(specification, scheduler, silence_logs=False)
            address = until_then.enter_context(made).scheduler_address
            until_then.callback(
                logging.getLogger("distributed").setLevel, logging.ERROR
            )  # what it says of closing is no news
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
    """Let a scheduler that has no limit fail what no worker takes for so long."""
    from dask.utils import parse_timedelta

    if dask_scheduler.no_workers_timeout is None:
        dask_scheduler.no_workers_timeout = parse_timedelta(seconds)


def environment(workers: int) -> dict[str, str]:
    """Of each of so many workers of this machine: a share of the cores, and silence, for the flow tells what happened to them."""
    share = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
    silent = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}
    return {"OMP_NUM_THREADS": share, **silent}


@contextmanager
def environ(values: dict[str, str]) -> Iterator[None]:
    """Variables of the environment, for the block."""
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


def card(index: int) -> dict[str, str]:
    """What makes one card of this machine the only one that a worker sees."""
    import torch

    if (count := torch.cuda.device_count()) < 2:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = seen if len(seen) == count else [str(number) for number in range(count)]
    return {"CUDA_VISIBLE_DEVICES": names[index % count]}


@contextmanager
def ray(address: str | None, workers: int) -> Iterator[TaskRunner[Any]]:
    """Prefect's runner on a Ray cluster; Ray itself gives every task a card, where there are several."""
    import ray
    import torch
    from prefect_ray.context import remote_options
    from prefect_ray.task_runners import RayTaskRunner

    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        options |= {"num_cpus": workers, "num_gpus": torch.cuda.device_count(), "include_dashboard": False}
        options |= {"runtime_env": {"env_vars": environment(workers)}}
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
