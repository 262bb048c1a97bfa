"""What a team has in MLflow: the registered versions, the gate to the champion, runs side by side, and records that wait for their server.

    python -m flows.registry list|promote|compare|upload [section.key=value ...]

A version that does not pass the gate is bad input: one message with every bound that it misses, and exit code 3 (`InputError`).
"""

import json as notation
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from tasks.config.parameters import Operation
from tasks.tracking import buffer, comparison, promotion
from tasks.tracking.registration import DIGEST

SHOWN = ("perplexity/", "model_compression/", "bytes/", "tasks/", "questions/")
HIDDEN = ("/stderr", "/n", "/majority")
"""Metrics that the table of a comparison shows, and what it leaves out of them; --json has all."""
PLAIN = 10_000
"""Columns of a table that goes nowhere near a terminal."""


def list_(p: Operation, json: bool = False) -> None:
    """Show the versions of `registry.model`."""
    found = promotion.versions(p)
    if json:
        print(notation.dumps([described(each) for each in found], indent=1))
        return
    columns = {
        "version": [str(each.number) for each in found],
        "alias": [" ".join(each.aliases) for each in found],
        "run": [f"{each.run[:8]} {each.name}" for each in found],
        "perplexity": [f"{each.of('perplexity'):.2f}" for each in found],
        "times dense's": [f"{each.above_dense:.4f}" for each in found],
        "model removed": [f"{each.of('model_compression'):.1%}" for each in found],
        "MB": [f"{each.of('bytes') / 1e6:.2f}" for each in found],
        "checkpoint": [each.tags.get(DIGEST, "")[:12] for each in found],
    }
    show(columns)


def described(version: promotion.Version) -> dict[str, Any]:
    """A version as JSON."""
    facts = {"version": version.number, "aliases": version.aliases, "run": version.run, "name": version.name}
    return {**facts, "tags": dict(version.tags), "metrics": dict(version.metrics)}


def promote(p: Operation, version: Annotated[int | None, typer.Argument()] = None) -> None:
    """Make a version, by default the candidate, the champion, if it passes `registry.gate`."""
    chosen = promotion.promote(p, version)
    print(f"Version {chosen.number} of {p.registry.model} is the champion.")


def compare(p: Operation, runs: Annotated[list[str] | None, typer.Argument()] = None, json: bool = False) -> None:
    """Show the parameters in which runs differ and what they measured: by id, name, version or alias; by default the newest."""
    found = comparison.compare(p, runs or ())
    if json:
        print(notation.dumps(found, indent=1))
        return
    heads = [f"{run['id'][:8]}\n{run['name']}\n{moment(run['start'])}" for run in found["runs"]]
    metrics = {
        key: [None if each is None else f"{each:.6g}" for each in values]
        for key, values in found["metrics"].items()
        if key.startswith(SHOWN) and not key.endswith(HIDDEN)
    }
    for name, rows in (("parameter", found["parameters"]), ("metric", metrics)):
        columns = {head: [values[index] or "" for values in rows.values()] for index, head in enumerate(heads)}
        show({name: [*rows], **columns})


def upload(p: Operation) -> None:
    """Copy the runs that wait in the buffer to `tracking.uri`."""
    names = buffer.upload(p)
    print(f"{len(names)} runs uploaded{': ' if names else ''}{', '.join(names)}")


def moment(milliseconds: int) -> str:
    """A time of MLflow as people read it."""
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def show(columns: Mapping[str, list[str]]) -> None:
    """Print a table by its columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for index, head in enumerate(columns):
        table.add_column(head, justify="right" if index else "left", overflow="fold")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN).print(table)


if __name__ == "__main__":
    from flows.command.subcommands import main

    sys.exit(main({"list": list_, "promote": promote, "compare": compare, "upload": upload}))
