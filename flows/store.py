"""Maintain the store: list its content, measure its size, pin artifacts, collect garbage, and share it with a team.

    python -m flows.store list [kind]
    python -m flows.store size
    python -m flows.store pin last --why "the model of the paper"
    python -m flows.store unpin last
    python -m flows.store collect --dry-run
    python -m flows.store push [what ...] [--remote NAME]
    python -m flows.store pull [what ...] [--remote NAME]

A collection never removes what a checkpoint below this folder, a revision of DVC or a pin needs, nor anything while a flow runs.
"""

import sys
from typing import Annotated, Any

import typer

from flows.command import subcommands
from tasks.audit.references import FORMS, resolve_target
from tasks.cache.artifact import Store
from tasks.config.parameters import Operation

What = Annotated[str, typer.Argument(help=FORMS)]
Several = Annotated[list[str] | None, typer.Argument(help=FORMS)]
Named = Annotated[str | None, typer.Option(help="remote of DVC's configuration; by default its default one")]
AsJson = Annotated[bool, typer.Option("--json", help="output for programs")]


def open_store(params: Operation) -> Store:
    """Open the store of this checkout."""
    return Store(params.store_path, params.store.lock_timeout)


def list_(
    params: Operation,
    kind: Annotated[str, typer.Argument(help="kind of artifact; by default all")] = "*",
    *,
    json: AsJson = False,
) -> None:
    """List every artifact with its size, its task, when it was made, and whether it is pinned."""
    from json import dumps

    from tasks.upkeep.collect import list_entries

    entries = sorted(list_entries(open_store(params), kind), key=lambda entry: entry.end)
    if json:
        print(
            dumps(
                [{**vars(entry), "artifact": f"{entry.artifact.kind}/{entry.artifact.digest}"} for entry in entries],
                indent=1,
            )
        )
        return
    for entry in entries:
        mark = "pinned" if entry.pinned else ""
        print(
            f"{entry.artifact!s:<28} {megabytes(entry.bytes):>12}  {entry.end[:16]:<16}  {entry.task:<18} {mark}".rstrip()
        )
    print(f"{len(entries)} artifacts, {megabytes(sum(entry.bytes for entry in entries))}")


def size(params: Operation, *, json: AsJson = False) -> None:
    """Show the number and size of the files in the store, by kind."""
    from json import dumps

    from tasks.upkeep.collect import store_sizes

    sizes = store_sizes(open_store(params))
    if json:
        print(dumps(sizes, indent=1))
        return
    for kind, each in sorted(sizes.items(), key=lambda item: -item[1]["bytes"]):
        print(f"{kind:<14} {each['count']:>7,} {megabytes(each['bytes']):>12}")
    print(f"{'all':<14} {'':>7} {megabytes(sum(each['bytes'] for each in sizes.values())):>12}")


def pin(params: Operation, what: What, *, why: Annotated[str, typer.Option(help="reason for keeping it")] = "") -> None:
    """Keep an artifact and all its ancestors, whether or not anything else needs them."""
    from tasks.upkeep.pins import pin as keep

    store = open_store(params)
    keep(store, artifact := resolve_target(params, store, what), why)
    print(f"{artifact} is pinned")


def unpin(params: Operation, what: What) -> None:
    """Remove the pin of an artifact."""
    from tasks.upkeep.pins import unpin as release

    store = open_store(params)
    release(store, artifact := resolve_target(params, store, what))
    print(f"{artifact} is no longer pinned")


def collect(
    params: Operation,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only report what would go")] = False,
    runs: Annotated[int, typer.Option(min=0, help="number of latest runs to keep in any case")] = 1,
    wait: Annotated[float, typer.Option(min=0, help="seconds to wait for running flows")] = 0.0,
) -> None:
    """Remove what no checkpoint, no revision of DVC, no pin and none of the latest runs needs."""
    from tasks.upkeep.collect import collect_garbage as collected

    found = collected(params, open_store(params), latest=runs, dry=dry_run, wait=wait)
    done = "would go" if dry_run else "removed"
    for entry in found.removed:
        print(f"{done:<8}  {entry.artifact!s:<28} {megabytes(entry.bytes):>12}  {entry.task}")
    print(
        f"{len(found.removed)} artifacts, {found.keys} keys and {found.quarantined} in quarantine {done}, {megabytes(found.bytes)}; "
        f"{found.kept} artifacts are needed"
    )


def push(params: Operation, what: Several = None, *, remote: Named = None) -> None:
    """Push artifacts with all their ancestors to the team's remote; by default those of the last run."""
    from tasks.upkeep.sync import push as pushed

    moved = pushed(params, what or (), remote)
    print(f"{moved.new_artifacts} of {moved.artifacts} artifacts pushed, and {moved.new_keys} of {moved.keys} keys")


def pull(params: Operation, what: Several = None, *, remote: Named = None) -> None:
    """Pull artifacts with all their ancestors from the team's remote; by default those of the last run."""
    from tasks.upkeep.sync import pull as pulled

    moved = pulled(params, what or (), remote)
    print(f"{moved.new_artifacts} of {moved.artifacts} artifacts pulled, and {moved.new_keys} of {moved.keys} keys")


def megabytes(count: int) -> str:
    """Format a number of bytes for people."""
    return f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    looking_after: dict[str, Any] = {"list": list_, "size": size, "pin": pin, "unpin": unpin, "collect": collect}
    sys.exit(subcommands.main({**looking_after, "push": push, "pull": pull}))
