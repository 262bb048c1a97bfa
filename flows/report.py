"""Render the audit report of a run from the store and the run's record: the same bytes as the run published.

    python -m flows.report [what] [section.key=value ...]

`what` is a run, or anything that a run made (tasks/audit/references.py); by default the last run, whose page is `report.html` among its
results. The page of another run is stored next to it, with the digest of that run's record in its name.
"""

import sys

from flows.lineage import What
from flows.parts.questions import BLIND
from tasks.audit.references import resolve_target, run_of
from tasks.cache.artifact import Store
from tasks.cache.atomic import publish_file
from tasks.cache.remote import remote_of
from tasks.config.parameters import Operation
from tasks.results.rebuild_report import restore_subject
from tasks.results.report import PAGE, render_page

LAST = "last"


def report(params: Operation, what: What = LAST) -> None:
    """Write the report of a run.

    Raises:
        UsageError, InputError: `what` names no run of `flows.compress`.
        DamagedError: an artifact of the run is missing or damaged.
    """
    store = Store(params.store_path, params.store.lock_timeout, remote_of(params.store.remote))
    run = run_of(store, resolve_target(params, store, what))
    place = params.results / (PAGE if what == LAST else PAGE.replace(".", f"-{run.digest[:12]}."))
    publish_file(place, render_page(restore_subject(store, run, blind=BLIND)).encode())
    print(f"The report is in {place}")


if __name__ == "__main__":
    from flows.command.subcommands import main

    sys.exit(main({"report": report}, ["report", *sys.argv[1:]]))
