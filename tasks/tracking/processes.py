"""The process behind a run of MLflow, and the runs whose process is gone.

A process that was killed outright cannot close its run. The next one on the same machine finds the run still open, sees by process id and
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
    """Mark as failed what processes of this machine left running when they were killed."""
    own = process_tags()
    host = own["process.host"].replace("'", "")
    for run in client.search_runs([experiment], f"attributes.status = 'RUNNING' and tags.`process.host` = '{host}'"):
        if BUFFERED not in run.data.tags and is_orphaned(run.data.tags):
            client.set_tag(run.info.run_id, "error", f"The process {run.data.tags['process.id']} of {host} was killed.")
            client.set_terminated(run.info.run_id, "FAILED")


def is_orphaned(told: Mapping[str, Any]) -> bool:
    """Whether `told`, what `process` said in some process, is of one of this machine that is gone."""
    number = int(told.get("process.id", 0))
    here = told.get("process.host") == socket.gethostname()
    return here and not (is_alive(number) and told.get("process.birth") == process_start(number))


def process_tags() -> dict[str, str]:
    """Tags by which a later run sees whether this process still lives."""
    return {
        "process.host": socket.gethostname(),
        "process.id": str(os.getpid()),
        "process.birth": process_start(os.getpid()),
    }


def process_start(number: int) -> str:
    """When a process started, in the kernel's ticks: numbers are used again. Empty where the system does not tell."""
    path = Path(f"/proc/{number}/stat")
    return path.read_text().rpartition(")")[2].split()[19] if path.exists() else ""
