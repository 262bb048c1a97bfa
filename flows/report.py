"""The audit report of a run, made again from the store and the run's record: the same bytes as the run published.

    python -m flows.report [what] [section.key=value ...]

`what` is a run, or anything that a run made (tasks/audit/references.py); by default the last run, whose page is `report.html` among its
results. The page of another run lies beside it, with the digest of that run's record in its name.
"""

import sys

from flows.lineage import What
from flows.parts.questions import BLIND
from tasks.audit.references import resolve, run_of
from tasks.cache.artifact import Store
from tasks.cache.atomic import publish_file
from tasks.cache.remote import remote_of
from tasks.config.parameters import Operation
from tasks.results.rebuild_report import restored
from tasks.results.report import PAGE, page

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
    from flows.command.subcommands import main

    sys.exit(main({"report": report}, ["report", *sys.argv[1:]]))
