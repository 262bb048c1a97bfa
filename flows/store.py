"""The store as a place that someone looks after: what is in it, what it takes, what is kept, and what can go.

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
from tasks.audit.references import FORMS, resolve
from tasks.cache.artifact import Store
from tasks.config.parameters import Operation

What = Annotated[str, typer.Argument(help=FORMS)]
Several = Annotated[list[str] | None, typer.Argument(help=FORMS)]
Named = Annotated[str | None, typer.Option(help="of DVC's configuration; by default its default")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def opened(p: Operation) -> Store:
    """The store of this checkout."""
    return Store(p.store_path, p.store.lock_timeout)


def list_(
    p: Operation,
    kind: Annotated[str, typer.Argument(help="of artifact; all by default")] = "*",
    *,
    json: AsJson = False,
) -> None:
    """Every artifact with its size, its task, when it was made, and whether it is pinned."""
    from json import dumps

    from tasks.upkeep.collect import entries

    found = sorted(entries(opened(p), kind), key=lambda entry: entry.end)
    if json:
        print(
            dumps(
                [{**vars(entry), "artifact": f"{entry.artifact.kind}/{entry.artifact.digest}"} for entry in found],
                indent=1,
            )
        )
        return
    for entry in found:
        mark = "pinned" if entry.pinned else ""
        print(
            f"{entry.artifact!s:<28} {megabytes(entry.bytes):>12}  {entry.end[:16]:<16}  {entry.task:<18} {mark}".rstrip()
        )
    print(f"{len(found)} artifacts, {megabytes(sum(entry.bytes for entry in found))}")


def size(p: Operation, *, json: AsJson = False) -> None:
    """What lies in the store, by kind."""
    from json import dumps

    from tasks.upkeep.collect import sizes

    found = sizes(opened(p))
    if json:
        print(dumps(found, indent=1))
        return
    for kind, each in sorted(found.items(), key=lambda item: -item[1]["bytes"]):
        print(f"{kind:<14} {each['count']:>7,} {megabytes(each['bytes']):>12}")
    print(f"{'all':<14} {'':>7} {megabytes(sum(each['bytes'] for each in found.values())):>12}")


def pin(p: Operation, what: What, *, why: Annotated[str, typer.Option(help="what it is kept for")] = "") -> None:
    """Keep an artifact and everything behind it, whatever else needs it."""
    from tasks.upkeep.pins import pin as keep

    store = opened(p)
    keep(store, artifact := resolve(p, store, what), why)
    print(f"{artifact} is pinned")


def unpin(p: Operation, what: What) -> None:
    """Stop keeping an artifact for its own sake."""
    from tasks.upkeep.pins import unpin as release

    store = opened(p)
    release(store, artifact := resolve(p, store, what))
    print(f"{artifact} is no longer pinned")


def collect(
    p: Operation,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would go")] = False,
    runs: Annotated[int, typer.Option(min=0, help="latest runs that are kept, whatever else needs them")] = 1,
    wait: Annotated[float, typer.Option(min=0, help="seconds to wait for flows that run")] = 0.0,
) -> None:
    """Remove what no checkpoint, no revision of DVC, no pin and none of the latest runs needs."""
    from tasks.upkeep.collect import collect as collected

    found = collected(p, opened(p), latest=runs, dry=dry_run, wait=wait)
    done = "would go" if dry_run else "removed"
    for entry in found.removed:
        print(f"{done:<8}  {entry.artifact!s:<28} {megabytes(entry.bytes):>12}  {entry.task}")
    print(
        f"{len(found.removed)} artifacts, {found.keys} keys and {found.quarantined} in quarantine {done}, {megabytes(found.bytes)}; "
        f"{found.kept} artifacts are needed"
    )


def push(p: Operation, what: Several = None, *, remote: Named = None) -> None:
    """Copy artifacts, by default those of the last run, with all behind them to the remote of the team."""
    from tasks.upkeep.sync import push as pushed

    found = pushed(p, what or (), remote)
    print(f"{found.new_artifacts} of {found.artifacts} artifacts pushed, and {found.new_keys} of {found.keys} keys")


def pull(p: Operation, what: Several = None, *, remote: Named = None) -> None:
    """Copy artifacts, by default those of the last run, with all behind them from the remote of the team."""
    from tasks.upkeep.sync import pull as pulled

    found = pulled(p, what or (), remote)
    print(f"{found.new_artifacts} of {found.artifacts} artifacts pulled, and {found.new_keys} of {found.keys} keys")


def megabytes(count: int) -> str:
    """A count of bytes as people read it."""
    return f"{count / 1e6:,.1f} MB"


if __name__ == "__main__":
    looking_after: dict[str, Any] = {"list": list_, "size": size, "pin": pin, "unpin": unpin, "collect": collect}
    sys.exit(subcommands.main({**looking_after, "push": push, "pull": pull}))
