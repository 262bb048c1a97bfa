"""Where a result comes from, whether that is still so, and how it is made again: the command of an audit.

    python -m flows.lineage show [what] [--json] [--figure file.svg] [--full]     the whole ancestry
    python -m flows.lineage verify [what] [--signers file]                       every byte against every record
    python -m flows.lineage diff one other                                       what made two results differ
    python -m flows.lineage reproduce [what]                                     the recorded commit, versions and run, once more
    python -m flows.lineage sign [what] --key ~/.ssh/id_ed25519                  who says so

`what` is a checkpoint, an artifact, a metric, a run of MLflow or a revision of DVC (tasks/targets.py); by default the last run.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows import verbs
from tasks.artifact import Store
from tasks.parameters import Operation
from tasks.targets import resolve

What = Annotated[
    str, typer.Argument(help="models/compressed, kind/digest, metric:<name>, mlflow:<run>, dvc:<rev>, last")
]


def opened(p: Operation) -> Store:
    """The store of this checkout."""
    return Store(p.store_path, p.store.lock_timeout)


def show(
    p: Operation,
    what: What = "last",
    *,
    json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
    full: Annotated[bool, typer.Option("--full", help="every artifact of a kind, and whole digests")] = False,
    figure: Annotated[Path | None, typer.Option(help="draw it into this .svg or .png")] = None,
) -> None:
    """Draw the whole ancestry of a result, from manifests alone."""
    from tasks.ancestry import as_json, as_tree

    store = opened(p)
    root = resolve(p, store, what)
    if json:
        print(as_json(store, root))
    else:
        as_tree(store, root, full=full)
    if figure is not None:
        from tasks.ancestry_figure import draw

        draw(store, root, figure)


if __name__ == "__main__":
    sys.exit(verbs.main({"show": show}))
