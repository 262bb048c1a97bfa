"""Process of a run in MLflow, and runs whose process is gone.

A process that was killed outright cannot close its run. The next one on the same machine finds the run still open, sees from process id and
start time that the process is gone, and marks the run as failed. A run that came from a buffer (tasks/tracking/buffer.py) is closed there.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.cache.atomic import is_alive
from tasks.tracking.backend import BUFFERED

if TYPE_CHECKING:
    from mlflow import MlflowClient


def fail_orphaned_runs(client: "MlflowClient", experiment: str) -> None:
    """Mark the runs as failed that killed processes of this machine left open."""
    own = process_tags()
    host = own["process.host"].replace("'", "")
    for run in client.search_runs([experiment], f"attributes.status = 'RUNNING' and tags.`process.host` = '{host}'"):
        if BUFFERED not in run.data.tags and is_orphaned(run.data.tags):
            client.set_tag(run.info.run_id, "error", f"The process {run.data.tags['process.id']} of {host} was killed.")
            client.set_terminated(run.info.run_id, "FAILED")


def is_orphaned(tags: Mapping[str, Any]) -> bool:
    """Tell whether the process with these tags (`process_tags`) belongs to this machine and is gone."""
    number = int(tags.get("process.id", 0))
    here = tags.get("process.host") == socket.gethostname()
    return here and not (is_alive(number) and tags.get("process.birth") == process_start(number))


def process_tags() -> dict[str, str]:
    """Tags from which a later run can tell whether this process is still alive."""
    return {
        "process.host": socket.gethostname(),
        "process.id": str(os.getpid()),
        "process.birth": process_start(os.getpid()),
    }


def process_start(number: int) -> str:
    """Start time of a process in kernel ticks, because process ids are reused; empty where the system does not report it."""
    path = Path(f"/proc/{number}/stat")
    return path.read_text().rpartition(")")[2].split()[19] if path.exists() else ""
