"""The scheduled flow: runs a flow by its name if something has changed, when its device is free, and retries after an outage.

    prefect deployment run scheduled/compress        # by hand, on the workers of the pool

A deployment of Prefect passes parameters as JSON, so this flow takes words: the flow to run, and the overrides that its command would take.
Numbers are read from `params.yaml` when the run starts. The flow itself runs inside, as it would from its command.

A run that equals an earlier one in backbone, data, code and parameters, whose results are still in place, ends within seconds as
Skipped. Outages are retried, and nothing else: an error that the user has to fix would only recur.
"""

import time
from importlib import import_module
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from flows.command.runner import run_flow
from flows.schedule.device_lock import device_names, hold_devices
from flows.schedule.orphans import crash_orphaned_runs, register
from flows.schedule.webhook import notify
from mgaa.errors import MgaaError, ResourceError
from tasks.cache.executions import ENGINES
from tasks.cache.step import plain_task
from tasks.config.parameters import Parameters, load_parameters
from tasks.config.sections.operation import Scheduled
from tasks.record.unchanged import find_unchanged_run


def notify_success(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of Prefect: post the end of a successful run to the webhook if `schedule.notify` is `all`."""
    if parameters(flow_run.parameters).schedule.notify == "all":
        notify(flow, flow_run, state)


@flow(
    name="scheduled",
    on_running=[register],
    on_failure=[notify],
    on_crashed=[notify],
    on_cancellation=[notify],
    on_completion=[notify_success],
)
def scheduled(command: Scheduled = "compress", overrides: list[str] | None = None, params: str = "params.yaml") -> Any:
    """Run a flow by its name unless nothing has changed since it last ran.

    Args:
        command: name of the flow.
        overrides: `section.key=value`, as on the command line.
        params: file of parameters, relative to the working folder of the deployment.
    """
    for name in crash_orphaned_runs():
        get_run_logger().warning("The process of the run %s was killed; it is recorded as crashed", name)
    given = {"command": command, "overrides": overrides, "params": params}
    same = retrying_attempt(parameters(given))(**given)
    return None if same is None else Completed(name="Skipped", message=same)


def parameters(given: dict[str, Any]) -> Parameters:
    """Load the parameters of a run from its deployment's."""
    return load_parameters(Path(given["params"]), given["overrides"] or [])


def retrying_attempt(params: Parameters) -> Any:
    """The task `attempt`, with as many retries as `schedule` allows."""
    backoff = exponential_backoff(params.schedule.delay)
    return attempt.with_options(
        retries=params.schedule.retries, retry_delay_seconds=backoff, retry_condition_fn=is_transient
    )


@plain_task(name="attempt")
def attempt(command: str, overrides: list[str] | None, params: str) -> str | None:
    """Run the flow once, for at most `schedule.timeout` seconds; returns the reason if there is nothing to do."""
    p = parameters({"overrides": overrides, "params": params})
    if (same := reason_to_skip(p, command)) is None:
        holder = f"the run {runtime.flow_run.name} ({runtime.flow_run.id})"
        with hold_devices(devices_of(p), holder, p.store.lock_timeout, get_run_logger().info):
            if (same := reason_to_skip(p, command)) is None:  # the run that it waited for may have been the same one
                run_deployed(command, p)
    return same


def run_deployed(command: str, params: Parameters) -> None:
    """Run the flow itself.

    Raises:
        ResourceError: it took longer than `schedule.timeout`; steps in progress are completed and kept.
    """
    chosen, limit, began = (
        getattr(import_module(f"flows.{command}"), command),
        params.schedule.timeout,
        time.monotonic(),
    )
    try:
        run_flow(chosen, params, timeout_seconds=limit, on_running=[register])
    except Exception as error:  # Prefect interrupts at any point, so that any error may result
        if limit is None or time.monotonic() - began < limit or isinstance(error, MgaaError):
            raise
        raise ResourceError(
            f"The run of flows.{command} took longer than schedule.timeout, {limit:g} s: raise it, or give the run less to do. "
            "Finished steps are kept."
        ) from None


def reason_to_skip(params: Parameters, command: str) -> str | None:
    """Reason why a run has nothing to do; None if it has something to do."""
    if command != "compress" or (record := find_unchanged_run(params)) is None:
        return None
    message = f"Nothing has changed since the run of {record['end']} (key {record['key'][:12]}), and its results are in place."
    get_run_logger().info(message)
    return message


def devices_of(params: Parameters) -> list[str]:
    """Devices that a run holds exclusively."""
    from flows.parts.device import resolve_device

    return device_names(resolve_device(params))


def is_transient(task: Any, task_run: Any, state: Any) -> bool:
    """Tell whether a retry may succeed: a network, a disk or a remote store failed, rather than memory or a worker that died."""
    cause = state.data.__cause__ if isinstance(state.data, ResourceError) else None
    ours = cause is None or isinstance(cause, MemoryError | RuntimeError)
    return not ours and type(cause).__module__.partition(".")[0] not in ENGINES
