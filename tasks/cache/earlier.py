"""Recognition of outputs without an ownership mark (`mgaa.checkpoints.ownership`): those of earlier versions, and those that DVC checks
out.

An exported artifact is recognized by its manifest, results by the record of their run next to them; both name files with their sha256. The
few others (tables of sweeps, a profile) are recognized by their content, the first time that a mark is written next to them.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mgaa.checkpoints.ownership import ANY, MARK, merge_sums
from tasks.cache.manifest import MANIFEST, RECORD, DamagedError, read_manifest

CARDS = ("README.md", "evaluation.json")
"""Files that were exported with an artifact and are in no manifest."""
SIGNS = {
    "evaluation.json": '"card"',
    "latency.json": '"shapes"',
    "sensitivity.csv": "type,compression,removed,",
    "study.csv": "search,method,groups,",
    "sweep.csv": ",perplexity",
    "search.json": '"searches"',
}
"""Signature in the content of files that no record names."""
BESIDE = {
    "sensitivity.csv": ("sensitivity.png", "sensitivity.svg"),
    "sweep.csv": ("sweep.parquet", "sweep.png", "sweep.svg"),
    "search.json": (
        *("allocation.json", "trials.csv"),
        *("best.png", "best.svg", "ranks.png", "ranks.svg"),
    ),
}
"""Files that were written together with those of `SIGNS`."""


def earlier_outputs(folder: Path) -> dict[str, Collection[str]]:
    """Files of a folder that are known to be ours, with the possible sha256 of each."""
    marked = (folder / MARK).exists()
    return {
        **merge_sums(
            _exported_files(folder, marked), _published_files(folder), {} if marked else _signature_files(folder)
        )
    }


def _exported_files(folder: Path, marked: bool) -> dict[str, set[str]]:
    try:
        files = read_manifest(folder)["files"]
    except (OSError, DamagedError):
        return {}
    cards = {} if marked else {name: {ANY} for name in CARDS}
    return {MANIFEST: {ANY}, **cards, **{name: {file["sha256"]} for name, file in files.items()}}


def _published_files(folder: Path) -> dict[str, set[str]]:
    """Files named by the record in the folder, or by that in the folder above."""
    found = {RECORD: {ANY}} if _record(folder) else {}
    for place in (folder, folder.parent):
        for name, sha256 in _record(place).items():
            if (path := _files_below(place, name)) is not None and path.parent == folder:
                found[path.name] = {sha256}
    return found


def _files_below(place: Path, name: str) -> Path | None:
    """Path of a file of a record in `place`, to which the names of the record may be relative in part."""
    parts = Path(name).parts
    shared = [count for count in range(1, len(parts)) if place.parts[-count:] == parts[:count]]
    return place.joinpath(*parts[max(shared) :]) if shared else None


def _record(folder: Path) -> dict[str, str]:
    try:
        content: Any = json.loads((folder / RECORD).read_bytes())
        return dict(content["published"]) if {"flow", "key", "artifacts"} <= content.keys() else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _signature_files(folder: Path) -> dict[str, set[str]]:
    found = [name for name, sign in SIGNS.items() if _has_sign(folder / name, sign)]
    return {each: {ANY} for name in found for each in (name, *BESIDE.get(name, ()))}


def _has_sign(path: Path, sign: str) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            return sign in file.read(100_000)
    except (OSError, ValueError):
        return False
