"""Buffer for runs while their tracking server is unreachable (`tracking.unreachable: buffer`).

Every run is then recorded on its own machine, in SQLite below the artifact store, and copied from there to `tracking.uri`: when it begins,
and when it has ended. An outage before, during or after the run makes no difference to it; the next run that
reaches the server copies whatever is waiting, and so does `python -m flows.registry upload`.

A copy is created with the id of its original as a tag, and every item has a name of its own (MLflow keeps one of two equal points of
a metric, parameters, tags, inputs and files alike), so an interrupted copy is simply repeated and nothing appears twice. A run leaves
the buffer when it has ended and is completely on the server.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from mgaa.errors import LockedError, ResourceError
from tasks.config.parameters import PathSections
from tasks.tracking.backend import (
    BUFFERED,
    SQLITE,
    connect,
    experiment_of,
    find_runs,
    log_all,
    run_uninterrupted,
    translate_store_errors,
)
from tasks.tracking.database import PATIENCE
from tasks.tracking.processes import fail_orphaned_runs
from tasks.tracking.registration import register

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT = "mlflow.parentRunId"
logger = logging.getLogger(__name__)


def database(params: PathSections) -> Path:
    """SQLite file of the buffer; the files of its runs lie in `mlruns` next to it."""
    return params.store_path / "buffer" / "mlflow.db"


def recording_uri(params: PathSections) -> str:
    """URI of the store in which a run is recorded while it runs."""
    return f"{SQLITE}{database(params)}" if params.tracking.unreachable == "buffer" else params.tracking_uri


def deliver(params: PathSections) -> bool:
    """Copy the buffer, if there is one, to the server; returns whether that succeeded, and warns if not.

    Raises:
        UsageError: the experiment was deleted on the server, or `tracking.uri` has no known form.
    """
    if params.tracking.unreachable != "buffer":
        return False
    try:
        run_uninterrupted(lambda: upload(params))
    except (ResourceError, LockedError) as error:
        logger.warning(
            "%s The run continues; its record is kept in %s, and the next run that reaches the server uploads it, or "
            "`python -m flows.registry upload`.",
            error,
            database(params).parent,
        )
        return False
    return True


def upload(params: PathSections) -> list[str]:
    """Copy every run of the buffer to `tracking.uri`; returns the names of those that have left the buffer.

    Raises:
        UsageError: the experiment was deleted on the server, or `tracking.uri` has no known form.
        ResourceError: the server cannot be reached or written.
        LockedError: another process is uploading.
    """
    from filelock import FileLock, Timeout

    with translate_store_errors(params.tracking_uri):
        server, _ = connect(params)
        if not database(params).exists():
            return []
        try:
            with FileLock(database(params).with_suffix(".lock"), timeout=PATIENCE):
                buffer, _ = connect(params, f"{SQLITE}{database(params)}")
                return [run.info.run_name for run in pending_runs(buffer) if copy_run(buffer, server, run)]
        except Timeout as error:
            raise LockedError(
                f"The buffer {database(params).parent} is being uploaded by another process, and was for {PATIENCE:g} "
                "s: expected it to end. "
                "Wait for it, or stop it, and start again."
            ) from error


def pending_runs(buffer: "MlflowClient") -> list["Run"]:
    """Runs of the buffer, parents before their children."""
    runs: list[Run] = []
    for experiment in buffer.search_experiments():
        fail_orphaned_runs(buffer, experiment.experiment_id)
        runs += find_runs(buffer, experiment.experiment_id)
    return sorted(runs, key=lambda run: (PARENT in run.data.tags, run.info.start_time))


def copy_run(buffer: "MlflowClient", server: "MlflowClient", run: "Run") -> bool:
    """Bring the copy of a run up to date; returns whether the run has ended and left the buffer."""
    place = experiment_of(server, buffer.get_experiment(run.info.experiment_id).name)
    if place.lifecycle_stage != "active":
        logger.warning("The run %s stays in the buffer: the experiment %s was deleted.", run.info.run_name, place.name)
        return False
    parent = find_copy(server, place.experiment_id, run.data.tags.get(PARENT, ""))
    tags = run.data.tags | ({PARENT: parent.info.run_id} if parent else {}) | {BUFFERED: run.info.run_id}
    made = find_copy(server, place.experiment_id, run.info.run_id) or server.create_run(
        place.experiment_id, run.info.start_time, tags, run.info.run_name
    )
    if made.info.lifecycle_stage == "active":  # otherwise it was deleted on the server
        copy_contents(buffer, run, server, made.info.run_id, tags)
    if run.info.status == "RUNNING":
        return False
    buffer.delete_run(run.info.run_id)
    shutil.rmtree(files_of(run).parent, ignore_errors=True)
    return True


def copy_contents(
    buffer: "MlflowClient", run: "Run", server: "MlflowClient", made: str, tags: Mapping[str, str]
) -> None:
    """Copy everything of a run to the run `made` of the server, its end last."""
    from mlflow.entities import Param, RunTag

    log_all(
        server,
        made,
        metrics=[point for key in run.data.metrics for point in buffer.get_metric_history(run.info.run_id, key)],
        params=[Param(key, value) for key, value in run.data.params.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    if run.inputs is not None and run.inputs.dataset_inputs:
        server.log_inputs(made, run.inputs.dataset_inputs)
    if files_of(run).is_dir():
        server.log_artifacts(made, str(files_of(run)))
    register(server, made)
    if run.info.status != "RUNNING":
        server.set_terminated(made, run.info.status, run.info.end_time)


def find_copy(server: "MlflowClient", experiment: str, original: str) -> "Run | None":
    """Find the copy of a buffered run on the server, deleted or not."""
    from mlflow.entities import ViewType

    found = server.search_runs([experiment], f"tags.`{BUFFERED}` = '{original}'", ViewType.ALL) if original else []
    return found[0] if found else None


def files_of(run: "Run") -> Path:
    """Folder of the files of a run."""
    return Path(unquote(urlparse(run.info.artifact_uri).path))
