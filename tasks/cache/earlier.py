"""What runs before this version left without a mark (`mgaa.checkpoints.ownership`), and what DVC checks out without one.

An exported artifact is known by its manifest, results by the record of their run beside them; both name files with their sha256. The few
others (tables of sweeps, a profile) are taken over by what they say, the first time that a mark is written beside them.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mgaa.checkpoints.ownership import ANY, MARK, merged
from tasks.cache.manifest import MANIFEST, RECORD, DamagedError, read_manifest

CARDS = ("README.md", "evaluation.json")
"""What was exported beside an artifact and stands in no manifest."""
SIGNS = {
    "evaluation.json": '"card"',
    "latency.json": '"shapes"',
    "sensitivity.csv": "type,compression,removed,",
    "study.csv": "search,method,groups,",
    "sweep.csv": ",perplexity",
    "search.json": '"searches"',
}
"""What stands in files that no record names."""
BESIDE = {
    "sensitivity.csv": ("sensitivity.png", "sensitivity.svg"),
    "sweep.csv": ("sweep.parquet", "sweep.png", "sweep.svg"),
    "search.json": (
        *("allocation.json", "trials.csv"),
        *("best.png", "best.svg", "ranks.png", "ranks.svg"),
    ),
}
"""Files that were written together with them."""


def earlier(folder: Path) -> dict[str, Collection[str]]:
    """Files of a folder that are known to be ours, with the sha256 that each may have."""
    marked = (folder / MARK).exists()
    return {**merged(_exported(folder, marked), _published(folder), {} if marked else _signed(folder))}


def _exported(folder: Path, marked: bool) -> dict[str, set[str]]:
    try:
        files = read_manifest(folder)["files"]
    except (OSError, DamagedError):
        return {}
    cards = {} if marked else {name: {ANY} for name in CARDS}
    return {MANIFEST: {ANY}, **cards, **{name: {file["sha256"]} for name, file in files.items()}}


def _published(folder: Path) -> dict[str, set[str]]:
    """By the record in the folder, or in the one above."""
    found = {RECORD: {ANY}} if _record(folder) else {}
    for place in (folder, folder.parent):
        for name, sha256 in _record(place).items():
            if (path := _below(place, name)) is not None and path.parent == folder:
                found[path.name] = {sha256}
    return found


def _below(place: Path, name: str) -> Path | None:
    """The file of a record in `place`, whose names begin with the last parts of that."""
    parts = Path(name).parts
    shared = [count for count in range(1, len(parts)) if place.parts[-count:] == parts[:count]]
    return place.joinpath(*parts[max(shared) :]) if shared else None


def _record(folder: Path) -> dict[str, str]:
    try:
        content: Any = json.loads((folder / RECORD).read_bytes())
        return dict(content["published"]) if {"flow", "key", "artifacts"} <= content.keys() else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _signed(folder: Path) -> dict[str, set[str]]:
    found = [name for name, sign in SIGNS.items() if _says(folder / name, sign)]
    return {each: {ANY} for name in found for each in (name, *BESIDE.get(name, ()))}


def _says(path: Path, sign: str) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return sign in file.read(100_000)
    except (OSError, ValueError):
        return False
