"""Where a result comes from, whether that is still so, and how it is made again: the command of an audit.

    python -m flows.lineage show [what] [--json] [--figure file.svg] [--full]     the whole ancestry
    python -m flows.lineage verify [what] [--signers file]                       every byte against every record
    python -m flows.lineage diff one other                                       what made two results differ
    python -m flows.lineage reproduce [what]                                     the recorded commit, versions and run, once more
    python -m flows.lineage sign [what] --key ~/.ssh/id_ed25519                  who says so

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
from tasks.audit.references import resolve, run_of
from tasks.cache.artifact import Store
from tasks.config.parameters import Operation
from tasks.record.run_record import read_record

ROLES = {"cause": "causes", "effect": "effects", "none": "without effect"}
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
    from tasks.audit.lineage_view import as_json, as_tree

    store = opened(p)
    root = resolve(p, store, what)
    if json:
        print(as_json(store, root))
    else:
        as_tree(store, root, full=full)
    if figure is not None:
        from tasks.audit.lineage_figure import draw

        draw(store, root, figure)


def verify(
    p: Operation,
    what: What = "last",
    *,
    signers: Annotated[
        Path | None, typer.Option(help="allowed signers, as git has them; the run must be signed")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Hash everything again, and compare manifests, files, dvc.lock, MLflow, git and signatures with each other."""
    from tasks.audit.verify import audit

    store = opened(p)
    found = audit(p, store, resolve(p, store, what), signers)
    if json:
        print(
            dumps(
                {
                    "disagreements": [vars(each) for each in found.disagreements],
                    "unchecked": [vars(each) for each in found.unchecked],
                }
            )
        )
    else:
        for each in found.findings:
            print(f"{each.kind:<10} {each}")
        rate = found.store.bytes / 1e6 / max(found.seconds, 1e-9)
        print(
            f"{found.store.artifacts} artifacts and {found.store.keys} keys, {found.store.bytes / 1e6:.1f} MB in {found.seconds:.2f} s "
            f"({rate:.0f} MB/s): {len(found.disagreements)} disagreements, {len(found.unchecked)} things not looked at"
        )
    if found.disagreements:
        raise InputError(
            f"{len(found.disagreements)} records disagree, expected none; the first: {found.disagreements[0]}. What is damaged in the "
            "store is made again by the next run; what is published, once it is removed, by `dvc checkout` or by the run."
        )


def diff(
    p: Operation,
    one: Annotated[str, typer.Argument(help="as for show")],
    other: Annotated[str, typer.Argument(help="as for show")] = "last",
    *,
    json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Tell which parameter, data, code, package or device made two results differ, what then did, and what had no effect."""
    from tasks.audit.difference import difference
    from tasks.record.findings import short

    store = opened(p)
    found = difference(store, resolve(p, store, one), resolve(p, store, other))
    if json:
        print(dumps([vars(each) for each in found], indent=1, ensure_ascii=False))
        return
    for each in found:
        idle = " (without effect)" if each.role == "none" else ""
        print(f"{each.aspect:<9} {each.name}: {short(each.one)} -> {short(each.other)}{idle}")
    causes = sorted({each.aspect for each in found if each.role == "cause"})
    counts = [(sum(each.role == role for each in found), word) for role, word in ROLES.items()]
    told = ", ".join(f"{count} {word}" for count, word in counts if count)
    print(
        f"{len(found)} differences"
        + (f" ({told})" if told else "")
        + (f"; the results differ by {', '.join(causes)}" if causes else "")
    )


def reproduce(
    p: Operation,
    what: What = "last",
    *,
    python: Annotated[
        Path | None, typer.Option(help="an interpreter with the packages; by default they are installed")
    ] = None,
) -> None:
    """Run the recorded commit with the recorded versions and parameters in a temporary clone, and compare the digests."""
    from tasks.audit.reproduce import reproduce as again

    store = opened(p)
    root = resolve(p, store, what)
    with TemporaryDirectory() as folder:
        found = again(p, read_record(store, run_of(store, root)), Path(folder), python)
    for name, (recorded, present) in found.versions.items():
        print(f"package   {name}: {recorded} -> {present}")
    for stage, same in found.stages.items():
        print(f"{'same' if same else 'differs':<9} {stage}")
    print(f"{sum(found.stages.values())} of {len(found.stages)} stages have the same digests")
    if not found.same:
        raise InputError(
            f"{len(found.stages) - sum(found.stages.values())} stages came out otherwise, expected the same digests: look at the device "
            "and at the versions above."
        )


def sign(
    p: Operation,
    what: What = "last",
    *,
    key: Annotated[Path, typer.Option(help="a key of OpenSSH")] = Path("~/.ssh/id_ed25519"),
) -> None:
    """Sign the record of a run, and with it everything that it names."""
    from tasks.record.signing import sign as signed

    store = opened(p)
    run = resolve(p, store, what)
    print(f"{run} is signed: {signed(store, run, key)}")


if __name__ == "__main__":
    sys.exit(subcommands.main({"show": show, "verify": verify, "diff": diff, "reproduce": reproduce, "sign": sign}))
