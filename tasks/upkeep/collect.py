"""Contents and size of a store, and the removal of what nothing needs (tasks/upkeep/retention.py).

A key is removed before the artifact that it names, and an artifact is renamed before its files are deleted: a collection that is killed
leaves a sound store, and the next one removes the rest.
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
from tasks.cache.atomic import disk_errors, remove_stale_drafts, temporary_folder
from tasks.config.parameters import PathSections
from tasks.record.lineage import node_of
from tasks.upkeep.pins import pins
from tasks.upkeep.retention import needed_artifacts
from tasks.upkeep.store_lock import lock_store


@dataclass(frozen=True)
class Entry:
    """An artifact in a listing; `task` and `end` are empty where its manifest is damaged."""

    artifact: Artifact
    bytes: int
    task: str
    end: str
    pinned: bool


@dataclass(frozen=True)
class Collection:
    """Result of a collection: what was removed (or would be), and what was kept."""

    removed: list[Entry]
    kept: int
    keys: int
    quarantined: int

    @property
    def bytes(self) -> int:
        """Bytes of the removed artifacts."""
        return sum(entry.bytes for entry in self.removed)


def list_entries(store: Store, kind: str = "*") -> Iterator[Entry]:
    """List the artifacts of a store, by their manifests alone."""
    pinned = {pin.artifact for pin in pins(store)}
    for artifact in artifacts(store, kind):
        manifest = node_of(store, artifact).manifest
        yield Entry(
            artifact,
            folder_size(store.path_of(artifact)),
            manifest.get("task", ""),
            manifest.get("end", ""),
            artifact in pinned,
        )


def folder_size(folder: Path) -> int:
    """Total size in bytes of all files below a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def store_sizes(store: Store) -> dict[str, dict[str, int]]:
    """Number of files or artifacts, and bytes, in every folder of a store."""
    folders = sorted(path for path in store.path.glob("*") if path.is_dir())
    return {path.name: {"count": sum(1 for _ in path.iterdir()), "bytes": folder_size(path)} for path in folders}


def collect_garbage(params: PathSections, store: Store, *, latest: int, dry: bool, wait: float) -> Collection:
    """Remove what nothing needs; with `dry`, only report it.

    Args:
        latest: number of latest runs that are kept in any case.
        wait: seconds to wait for runs that use the store.

    Raises:
        LockedError: a run uses the store.
        DamagedError: an exported manifest or a `dvc.lock` cannot be read, so its needs are unknown; nothing was removed.
    """
    with lock_store(store.path, wait):
        kept = needed_artifacts(params, store, latest)
        removed = [entry for entry in list_entries(store) if entry.artifact not in kept]
        unneeded = {entry.artifact for entry in removed}
        keys = [path for path, artifact in keys_in(store) if artifact is None or artifact in unneeded]
        quarantined = [*(store.path / "quarantine").glob(f"*-{64 * '[0-9a-f]'}-*")]
        if not dry:
            remove_artifacts(store, keys, [*(store.path_of(artifact) for artifact in unneeded), *quarantined])
        return Collection(removed, len(kept.keys() - unneeded), len(keys), len(quarantined))


def keys_in(store: Store) -> Iterator[tuple[Path, Artifact | None]]:
    """List the key records with the artifacts that they name; None for a damaged record."""
    for path in sorted((store.path / "keys").glob(f"{64 * '[0-9a-f]'}.json")):
        try:
            record: Mapping[str, Any] = json.loads(path.read_bytes())
            yield path, Artifact(record["kind"], record["digest"])
        except (ValueError, KeyError, TypeError, RecursionError):
            yield path, None


def remove_artifacts(store: Store, keys: list[Path], folders: list[Path]) -> None:
    """Remove key records first, then artifact folders, each renamed away in one step."""
    with disk_errors(store.path):
        for path in keys:
            path.unlink(missing_ok=True)
        remove_stale_drafts(store.path)
        with temporary_folder(store.path) as bin:
            for number, folder in enumerate(folders):
                os.rename(folder, bin / str(number))
                shutil.rmtree(bin / str(number), ignore_errors=True)
        for lock in (store.path / "locks").glob("*.lock"):
            lock.unlink(missing_ok=True)
