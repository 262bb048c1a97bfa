"""The audit report of a run, made again from the store and the run's record: the same bytes as the run published.

    python -m flows.report [what] [section.key=value ...]

`what` is a run, or anything that a run made (tasks/targets.py); by default the last run, whose page is `report.html` among its results. The
page of another run lies beside it, with the digest of that run's record in its name.
"""

import sys

from flows.asking import BLIND
from flows.lineage import What
from tasks.artifact import Store
from tasks.parameters import Operation
from tasks.remote import remote_of
from tasks.report import PAGE, page
from tasks.restore import restored
from tasks.targets import resolve, run_of
from tasks.writing import publish_file

LAST = "last"


def report(p: Operation, what: What = LAST) -> None:
    """Write the page of a run.

    Raises:
        UsageError, InputError: `what` names no run of `flows.compress`.
        DamagedError: an artifact of the run is missing or damaged.
    """
    store = Store(p.store_path, p.store.lock_timeout, remote_of(p.store.remote))
    run = run_of(store, resolve(p, store, what))
    place = p.results / (PAGE if what == LAST else PAGE.replace(".", f"-{run.digest[:12]}."))
    publish_file(place, page(restored(store, run, blind=BLIND)).encode())
    print(f"The report is in {place}")


if __name__ == "__main__":
    from flows.verbs import main

    sys.exit(main({"report": report}, ["report", *sys.argv[1:]]))
