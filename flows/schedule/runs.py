"""What a schedule runs: a flow by its name, if something has changed, when its device is free, and again after an outage.

    prefect deployment run scheduled/compress        # by hand, on the workers of the pool

A deployment of Prefect gives parameters as JSON, so this flow takes words: which flow, and the overrides that its command would take.
Numbers are read from `params.yaml` when the run starts. The flow itself runs inside, as it would from its command.

A run whose backbone, data, code and parameters are those of an earlier one, with the results of that still in place, ends in seconds as
Skipped. Only what a network, a disk or a remote store refused is tried again: what the user has to change fails the same way every time.
"""

import time
from importlib import import_module
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from flows.command.runner import run
from flows.schedule.device_lock import devices, turn
from flows.schedule.orphans import close_vanished, register
from flows.schedule.webhook import tell
from mgaa.errors import MgaaError, ResourceError
from tasks.cache.executions import ENGINES
from tasks.cache.step import plain_task
from tasks.config.parameters import Parameters, load
from tasks.config.sections.operation import Scheduled
from tasks.record.unchanged import unchanged


def tell_of_success(flow: Any, flow_run: Any, state: Any) -> None:
    """A hook of Prefect: where `schedule.notify` is `all`, the webhook is told of a run that has ended well."""
    if parameters(flow_run.parameters).schedule.notify == "all":
        tell(flow, flow_run, state)


@flow(
    name="scheduled",
    on_running=[register],
    on_failure=[tell],
    on_crashed=[tell],
    on_cancellation=[tell],
    on_completion=[tell_of_success],
)
def scheduled(command: Scheduled = "compress", overrides: list[str] | None = None, params: str = "params.yaml") -> Any:
    """Run a flow by its name unless nothing has changed since it last ran.

    Args:
        command: the flow.
        overrides: `section.key=value`, as on the command line.
        params: the file of parameters, from the working folder of the deployment.
    """
    for name in close_vanished():
        get_run_logger().warning("The process of the run %s was killed; it is recorded as crashed", name)
    given = {"command": command, "overrides": overrides, "params": params}
    same = trying(parameters(given))(**given)
    return None if same is None else Completed(name="Skipped", message=same)


def parameters(given: dict[str, Any]) -> Parameters:
    """The parameters of a run by those of its deployment."""
    return load(Path(given["params"]), given["overrides"] or [])


def trying(p: Parameters) -> Any:
    """The task `attempt`, with as many tries as `schedule` allows."""
    backoff = exponential_backoff(p.schedule.delay)
    return attempt.with_options(retries=p.schedule.retries, retry_delay_seconds=backoff, retry_condition_fn=passing)


@plain_task(name="attempt")
def attempt(command: str, overrides: list[str] | None, params: str) -> str | None:
    """Run the flow once, for at most `schedule.timeout` seconds; if there is nothing to do, returns why."""
    p = parameters({"overrides": overrides, "params": params})
    if (same := nothing_to_do(p, command)) is None:
        holder = f"the run {runtime.flow_run.name} ({runtime.flow_run.id})"
        with turn(places(p), holder, p.store.lock_timeout, get_run_logger().info):
            if (same := nothing_to_do(p, command)) is None:  # what it waited for may have been the same
                timed(command, p)
    return same


def timed(command: str, p: Parameters) -> None:
    """Run the flow itself.

    Raises:
        ResourceError: it took longer than `schedule.timeout`; steps that compute are waited for, and kept.
    """
    chosen, limit, began = getattr(import_module(f"flows.{command}"), command), p.schedule.timeout, time.monotonic()
    try:
        run(chosen, p, timeout_seconds=limit, on_running=[register])
    except Exception as error:  # Prefect interrupts whatever it is doing, so that it may be anything
        if limit is None or time.monotonic() - began < limit or isinstance(error, MgaaError):
            raise
        raise ResourceError(
            f"The run of flows.{command} took longer than schedule.timeout, {limit:g} s: raise it, or give the run less to do. "
            "Finished steps are kept."
        ) from None


def nothing_to_do(p: Parameters, command: str) -> str | None:
    """Why a run has nothing to do, if so."""
    if command != "compress" or (record := unchanged(p)) is None:
        return None
    message = f"Nothing has changed since the run of {record['end']} (key {record['key'][:12]}), and its results are in place."
    get_run_logger().info(message)
    return message


def places(p: Parameters) -> list[str]:
    """The devices that a run takes for itself."""
    from flows.parts.measurement import device

    return devices(device(p))


def passing(task: Any, task_run: Any, state: Any) -> bool:
    """Whether a failure may be gone the next time: a network, a disk or a remote store refused, and not memory or a worker that died."""
    cause = state.data.__cause__ if isinstance(state.data, ResourceError) else None
    ours = cause is None or isinstance(cause, MemoryError | RuntimeError)
    return not ours and type(cause).__module__.partition(".")[0] not in ENGINES
