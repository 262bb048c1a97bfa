"""Scheduled runs whose process is gone while Prefect still takes them for running.

A worker reports how the processes that it started have ended. When it is killed together with them, nobody does, and their records would
say Running for ever. So every scheduled run stores the identity of its process with its record, and every one that starts looks for
records of this machine whose process is gone, as for MLflow's runs (tasks/tracking/processes.py). A record that says Running and names no
process, of a run that was killed in the moment between the two, is left alone.
"""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import State, StateType
from prefect.states import Crashed

from flows.schedule.webhook import notify
from tasks.tracking.processes import is_orphaned, process_tags


def register(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of Prefect: store the identity of this process with the record of the flow run."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(flow_run.id, {**process_tags()})


def crash_orphaned_runs() -> list[str]:
    """Set the registered runs whose process is gone to Crashed, and notify the webhook; returns the names of scheduled runs."""
    running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
    with get_client(sync_client=True) as client:
        gone = [
            run
            for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=running))
            if is_orphaned(run.labels)
        ]
        for run in gone:
            state = crashed_state(run.labels["process.id"])
            client.set_flow_run_state(run.id, state, force=True)
            if run.deployment_id is not None:  # otherwise it ran inside of one
                notify(client.read_flow(run.flow_id), run, state)
    return [run.name for run in gone if run.deployment_id is not None]


def crashed_state(number: Any) -> State[Any]:
    """Final state of a run whose process was killed."""
    return Crashed(message=f"The process {number} was killed; the next run resumes from its finished steps.")
