"""Manage a team's runs in MLflow: registered versions, promotion to champion, runs side by side, and the upload of buffered runs.

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
"""Prefixes of the metrics in the table of a comparison, and suffixes of those that it leaves out; --json has all."""
PLAIN = 10_000
"""Columns of a table that is not printed to a terminal."""


def list_(params: Operation, json: bool = False) -> None:
    """Show the versions of `registry.model`."""
    known = promotion.versions(params)
    if json:
        print(notation.dumps([describe_version(each) for each in known], indent=1))
        return
    columns = {
        "version": [str(each.number) for each in known],
        "alias": [" ".join(each.aliases) for each in known],
        "run": [f"{each.run[:8]} {each.name}" for each in known],
        "perplexity": [f"{each.of('perplexity'):.2f}" for each in known],
        "times dense's": [f"{each.above_dense:.4f}" for each in known],
        "model removed": [f"{each.of('model_compression'):.1%}" for each in known],
        "MB": [f"{each.of('bytes') / 1e6:.2f}" for each in known],
        "checkpoint": [each.tags.get(DIGEST, "")[:12] for each in known],
    }
    show(columns)


def describe_version(version: promotion.Version) -> dict[str, Any]:
    """Describe a version for JSON."""
    facts = {"version": version.number, "aliases": version.aliases, "run": version.run, "name": version.name}
    return {**facts, "tags": dict(version.tags), "metrics": dict(version.metrics)}


def promote(params: Operation, version: Annotated[int | None, typer.Argument()] = None) -> None:
    """Make a version, by default the candidate, the champion, if it passes `registry.gate`."""
    chosen = promotion.promote(params, version)
    print(f"Version {chosen.number} of {params.registry.model} is the champion.")


def compare(params: Operation, runs: Annotated[list[str] | None, typer.Argument()] = None, json: bool = False) -> None:
    """Show the parameters in which runs differ and what they measured: by id, name, version or alias; by default the newest."""
    table = comparison.compare(params, runs or ())
    if json:
        print(notation.dumps(table, indent=1))
        return
    heads = [f"{run['id'][:8]}\n{run['name']}\n{format_time(run['start'])}" for run in table["runs"]]
    metrics = {
        key: [None if each is None else f"{each:.6g}" for each in values]
        for key, values in table["metrics"].items()
        if key.startswith(SHOWN) and not key.endswith(HIDDEN)
    }
    for name, rows in (("parameter", table["parameters"]), ("metric", metrics)):
        columns = {head: [values[index] or "" for values in rows.values()] for index, head in enumerate(heads)}
        show({name: [*rows], **columns})


def upload(params: Operation) -> None:
    """Copy the buffered runs to `tracking.uri`."""
    names = buffer.upload(params)
    print(f"{len(names)} runs uploaded{': ' if names else ''}{', '.join(names)}")


def format_time(milliseconds: int) -> str:
    """Format a time of MLflow for people."""
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def show(columns: Mapping[str, list[str]]) -> None:
    """Print a table, given by its columns."""
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
