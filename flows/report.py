"""The audit report of a run, made again from the store and the run's record: the same bytes as the run published.

    python -m flows.report [--run DIGEST] [section.key=value ...]

The page is `report.html` among the results of the last run. An older run is named by the digest of its record (`run.record` in MLflow, or
a folder below `store/run`), or by the beginning of it; its page lies beside the last one's, with the digest in its name.
"""

import json
import sys
from pathlib import Path
from typing import Any

from flows.asking import BLIND
from mgaa.errors import InputError
from tasks.artifact import Artifact, Store
from tasks.parameters import Operation
from tasks.remote import remote_of
from tasks.report import PAGE, page
from tasks.restore import restored
from tasks.run_record import KIND, RECORD, read_record
from tasks.writing import write_file


def report(given: Operation, run: str = "") -> None:
    """Write the report of the last run, or of the one whose record's digest begins so.

    Raises:
        InputError: there is no such run, or no record of the last one.
        DamagedError: an artifact of the run is missing or damaged.
    """
    store = Store(given.store_path, given.store.lock_timeout, remote_of(given.store.remote))
    record = read_record(store, named(store, run)) if run else last(given.results / RECORD)
    place = given.results / (PAGE.replace(".", f"-{run[:12]}.") if run else PAGE)
    write_file(place, page(restored(store, record, blind=BLIND)).encode())
    print(f"The report is in {place}")


def last(path: Path) -> dict[str, Any]:
    """The record that lies beside the results."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}), expected the record of a run: make one with `python -m flows.compress` or fetch it with "
            "`dvc pull`, or name a run by its digest."
        ) from error
    return content


def named(store: Store, beginning: str) -> Artifact:
    """The record of the store whose digest begins so."""
    found = sorted(path.name for path in (store.path / KIND).glob("*") if path.name.startswith(beginning))
    if len(found) != 1:
        raise InputError(
            f"{len(found)} runs in {store.path} have a record whose digest begins with {beginning!r}, expected one: give more of the "
            "digest, which is the tag run.record in MLflow, or a folder below store/run."
        )
    return Artifact(KIND, found[0])


if __name__ == "__main__":
    from flows.verbs import main

    sys.exit(main({"report": report}, ["report", *sys.argv[1:]]))
