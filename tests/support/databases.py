"""A file with MLflow's tables and nothing in it, made once for all test processes: 270 transactions take seconds, a copy takes none."""

import os
import shutil
from pathlib import Path

from filelock import FileLock

from tasks.tracking.backend import prepare_database


def copy_database(target: Path) -> Path:
    """At `target`, a tracking store without experiments; outside of pytest nothing, so that it is made there."""
    shared = os.environ.get("MGAA_TESTS_SHARED")
    if shared is None:
        return target
    blank = Path(shared) / "blank" / "mlflow.db"
    blank.parent.mkdir(exist_ok=True)
    with FileLock(blank.with_suffix(".lock")):
        if not blank.exists():
            with prepare_database(blank.with_name("made.db"), blank.parent / "mlruns"):
                pass
            blank.with_name("made.db").rename(blank)
    return Path(shutil.copy(blank, target))
