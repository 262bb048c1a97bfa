"""Audit a result: show where it comes from, verify it, compare it with another one, and reproduce it.

    python -m flows.lineage show [what] [--json] [--figure file.svg] [--full]     the whole ancestry
    python -m flows.lineage verify [what] [--signers file]                       every byte against every record
    python -m flows.lineage diff one other                                       what made two results differ
    python -m flows.lineage reproduce [what]                                     the recorded commit, versions and run, once more
    python -m flows.lineage sign [what] --key ~/.ssh/id_ed25519                  a signature of the run's record

`what` is a checkpoint, an artifact, a metric, a run of MLflow or a revision of DVC (tasks/audit/references.py); by default the last run.
"""

import sys
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from flows.command import subcommands
from mgaa.errors import InputError
from tasks.audit.references import resolve_target, run_of
from tasks.cache.artifact import Store
from tasks.config.parameters import Operation
from tasks.record.run_record import read_record

ROLES = {"cause": "causes", "effect": "effects", "none": "without effect"}
What = Annotated[
    str, typer.Argument(help="models/compressed, kind/digest, metric:<name>, mlflow:<run>, dvc:<rev>, last")
]


def open_store(params: Operation) -> Store:
    """Open the store of this checkout."""
    return Store(params.store_path, params.store.lock_timeout)


def show(
    params: Operation,
    what: What = "last",
    *,
    json: Annotated[bool, typer.Option("--json", help="output for programs")] = False,
    full: Annotated[
        bool, typer.Option("--full", help="every artifact on a line of its own, with complete digests")
    ] = False,
    figure: Annotated[Path | None, typer.Option(help="draw the ancestry into this .svg or .png")] = None,
) -> None:
    """Show the whole ancestry of a result, from manifests alone."""
    from tasks.audit.lineage_view import as_json, print_tree

    store = open_store(params)
    root = resolve_target(params, store, what)
    if json:
        print(as_json(store, root))
    else:
        print_tree(store, root, full=full)
    if figure is not None:
        from tasks.audit.lineage_figure import draw

        draw(store, root, figure)


def verify(
    params: Operation,
    what: What = "last",
    *,
    signers: Annotated[
        Path | None, typer.Option(help="file of allowed signers, in git's format; the run must be signed")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="output for programs")] = False,
) -> None:
    """Hash everything again, and compare manifests, files, dvc.lock, MLflow, git and signatures with each other."""
    from tasks.audit.verify import audit

    store = open_store(params)
    result = audit(params, store, resolve_target(params, store, what), signers)
    if json:
        print(
            dumps(
                {
                    "disagreements": [vars(each) for each in result.disagreements],
                    "unchecked": [vars(each) for each in result.unchecked],
                }
            )
        )
    else:
        for each in result.findings:
            print(f"{each.kind:<10} {each}")
        rate = result.store.bytes / 1e6 / max(result.seconds, 1e-9)
        print(
            f"{result.store.artifacts} artifacts and {result.store.keys} keys, {result.store.bytes / 1e6:.1f} MB in {result.seconds:.2f} s "
            f"({rate:.0f} MB/s): {len(result.disagreements)} disagreements, {len(result.unchecked)} unchecked"
        )
    if result.disagreements:
        raise InputError(
            f"{len(result.disagreements)} records disagree, expected none; the first: {result.disagreements[0]}. The next run repairs what "
            "is damaged in the store; remove damaged published files, and restore them with `dvc checkout` or by running again."
        )


def diff(
    params: Operation,
    one: Annotated[str, typer.Argument(help="as for show")],
    other: Annotated[str, typer.Argument(help="as for show")] = "last",
    *,
    json: Annotated[bool, typer.Option("--json", help="output for programs")] = False,
) -> None:
    """Show which parameters, data, code, packages or device made two results differ, the effects, and the differences without effect."""
    from tasks.audit.difference import compare_results
    from tasks.record.findings import shorten

    store = open_store(params)
    differing = compare_results(store, resolve_target(params, store, one), resolve_target(params, store, other))
    if json:
        print(dumps([vars(each) for each in differing], indent=1, ensure_ascii=False))
        return
    for each in differing:
        idle = " (without effect)" if each.role == "none" else ""
        print(f"{each.aspect:<9} {each.name}: {shorten(each.one)} -> {shorten(each.other)}{idle}")
    causes = sorted({each.aspect for each in differing if each.role == "cause"})
    counts = [(sum(each.role == role for each in differing), word) for role, word in ROLES.items()]
    summary = ", ".join(f"{count} {word}" for count, word in counts if count)
    print(
        f"{len(differing)} differences"
        + (f" ({summary})" if summary else "")
        + (f"; the results differ by {', '.join(causes)}" if causes else "")
    )


def reproduce(
    params: Operation,
    what: What = "last",
    *,
    python: Annotated[
        Path | None, typer.Option(help="interpreter with the packages; by default a new environment is installed")
    ] = None,
) -> None:
    """Run the recorded commit with the recorded versions and parameters in a temporary clone, and compare the digests."""
    from tasks.audit.reproduce import reproduce as again

    store = open_store(params)
    root = resolve_target(params, store, what)
    with TemporaryDirectory() as folder:
        outcome = again(params, read_record(store, run_of(store, root)), Path(folder), python)
    for name, (recorded, present) in outcome.versions.items():
        print(f"package   {name}: {recorded} -> {present}")
    for stage, same in outcome.stages.items():
        print(f"{'same' if same else 'differs':<9} {stage}")
    print(f"{sum(outcome.stages.values())} of {len(outcome.stages)} stages have the same digests")
    if not outcome.is_same:
        raise InputError(
            f"{len(outcome.stages) - sum(outcome.stages.values())} stages have other digests, expected the same: compare the device "
            "and the versions above."
        )


def sign(
    params: Operation,
    what: What = "last",
    *,
    key: Annotated[Path, typer.Option(help="key in OpenSSH's format")] = Path("~/.ssh/id_ed25519"),
) -> None:
    """Sign the record of a run, and thereby everything that it names."""
    from tasks.record.signing import sign as signed

    store = open_store(params)
    run = resolve_target(params, store, what)
    print(f"{run} is signed: {signed(store, run, key)}")


if __name__ == "__main__":
    sys.exit(subcommands.main({"show": show, "verify": verify, "diff": diff, "reproduce": reproduce, "sign": sign}))
