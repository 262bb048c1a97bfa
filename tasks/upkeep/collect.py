"""Looking after a store: what is in it, how large it is, and the removal of what nothing needs (tasks/upkeep/retention.py).

A key goes before the artifact that it names, and an artifact leaves under another name before its files go: a collection that is killed
leaves a sound store, and the rest for the next one.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.audit.references import artifacts
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import disk_errors, sweep, temporary
from tasks.config.parameters import Placed
from tasks.record.lineage import node_of
from tasks.upkeep.pins import pins
from tasks.upkeep.retention import needed
from tasks.upkeep.store_lock import alone


@dataclass(frozen=True)
class Entry:
    """An artifact as a list shows it; `task` and `end` are empty where its manifest is damaged."""

    artifact: Artifact
    bytes: int
    task: str
    end: str
    pinned: bool


@dataclass(frozen=True)
class Collection:
    """What a collection removed, or would remove, and what it kept."""

    removed: list[Entry]
    kept: int
    keys: int
    quarantined: int

    @property
    def bytes(self) -> int:
        """Of what was removed."""
        return sum(entry.bytes for entry in self.removed)


def entries(store: Store, kind: str = "*") -> Iterator[Entry]:
    """Every artifact of the store, by its manifest alone."""
    kept = {pin.artifact for pin in pins(store)}
    for artifact in artifacts(store, kind):
        manifest = node_of(store, artifact).manifest
        yield Entry(
            artifact, size(store.place(artifact)), manifest.get("task", ""), manifest.get("end", ""), artifact in kept
        )


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def sizes(store: Store) -> dict[str, dict[str, int]]:
    """Number of files or artifacts, and bytes, of everything that lies in the store, by its folder."""
    folders = sorted(path for path in store.path.glob("*") if path.is_dir())
    return {path.name: {"count": sum(1 for _ in path.iterdir()), "bytes": size(path)} for path in folders}


def collect(p: Placed, store: Store, *, latest: int, dry: bool, wait: float) -> Collection:
    """Remove what nothing needs; with `dry`, only tell what that would be.

    Args:
        latest: how many of the latest runs are kept for their own sake.
        wait: seconds to wait for runs that use the store.

    Raises:
        LockedError: a run uses the store.
        DamagedError: an exported manifest or a `dvc.lock` cannot be read, so what it needs cannot be told; nothing was removed.
    """
    with alone(store.path, wait):
        kept = needed(p, store, latest)
        removed = [entry for entry in entries(store) if entry.artifact not in kept]
        gone = {entry.artifact for entry in removed}
        keys = [path for path, artifact in keys_in(store) if artifact is None or artifact in gone]
        shelved = [*(store.path / "quarantine").glob(f"*-{64 * '[0-9a-f]'}-*")]
        if not dry:
            remove(store, keys, [*(store.place(artifact) for artifact in gone), *shelved])
        return Collection(removed, len(kept.keys() - gone), len(keys), len(shelved))


def keys_in(store: Store) -> Iterator[tuple[Path, Artifact | None]]:
    """The records of keys with the artifact that they name; null where they are damaged."""
    for path in sorted((store.path / "keys").glob(f"{64 * '[0-9a-f]'}.json")):
        try:
            record: Mapping[str, Any] = json.loads(path.read_bytes())
            yield path, Artifact(record["kind"], record["digest"])
        except (ValueError, KeyError, TypeError, RecursionError):
            yield path, None


def remove(store: Store, keys: list[Path], folders: list[Path]) -> None:
    """Keys first, then folders, each out of its place at once."""
    with disk_errors(store.path):
        for path in keys:
            path.unlink(missing_ok=True)
        sweep(store.path)
        with temporary(store.path) as bin:
            for number, folder in enumerate(folders):
                os.rename(folder, bin / str(number))
                shutil.rmtree(bin / str(number), ignore_errors=True)
        for lock in (store.path / "locks").glob("*.lock"):
            lock.unlink(missing_ok=True)
