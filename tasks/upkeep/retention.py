"""What of a store is needed: everything behind a checkpoint, a revision of DVC, a pin, or one of the latest runs.

Checkpoints and records are found where they were exported, below the folder of `params.yaml`. Revisions of DVC are those of every branch,
tag, stash and experiment: their `dvc.lock` names records by MD5, which the store knows, and folders, whose manifest DVC's cache has. A
revision of which neither is here was made elsewhere, or by a store that is gone: it needs nothing of this one that could be told.
"""

import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tasks.audit.dvc_lock import read_stages
from tasks.audit.references import artifacts, runs_with
from tasks.cache.artifact import Artifact, DamagedError, Store
from tasks.cache.manifest import MANIFEST, RECORD, read_manifest
from tasks.config.parameters import Placed, checkout
from tasks.record.lineage import ancestry, node_of
from tasks.record.run_record import KIND, digest_of, keys_of, md5, read_record
from tasks.upkeep.pins import pins


def needed(p: Placed, store: Store, latest: int) -> dict[Artifact, str]:
    """Every artifact that is needed, with what needs it.

    Args:
        latest: how many of the latest runs are needed for their own sake.
    """
    found: dict[Artifact, str] = {}
    for root, why in roots(p, store, latest):
        for artifact in behind(store, root):
            found.setdefault(artifact, why)
    return found


def roots(p: Placed, store: Store, latest: int) -> Iterator[tuple[Artifact, str]]:
    """What is needed for its own sake, and why."""
    yield from ((pin.artifact, f"pinned{f': {pin.why}' if pin.why else ''}") for pin in pins(store))
    yield from exported(p)
    yield from revisions(p, store)
    ends = {run: node_of(store, run).manifest.get("end", "") for run in artifacts(store, KIND)}
    for run in sorted(ends, key=lambda each: ends[each], reverse=True)[:latest]:
        yield run, "one of the latest runs"


def behind(store: Store, root: Artifact) -> set[Artifact]:
    """A root, what it was made from by its own manifest, and by every run that had it."""
    runs = [root] if root.kind == KIND else [*runs_with(store, root)]
    ways: list[dict[Artifact, str]] = [
        {},
        *(keys_of(read_record(store, run)) for run in runs if store.place(run).is_dir()),
    ]
    return {artifact for keys in ways for artifact in ancestry(store, [root], keys)}


def exported(p: Placed) -> Iterator[tuple[Artifact, str]]:
    """Checkpoints and records below the folder of `params.yaml`."""
    folder = checkout(p.folder)
    patterns = (f"models/*/{MANIFEST}", *(f"{depth}/*{RECORD}" for depth in ("*", "*/*")))
    places = [path for pattern in patterns for path in folder.glob(pattern)]
    places += [p.folder / p.output.checkpoint / MANIFEST, *p.results.glob(f"*{RECORD}")]
    for path in dict.fromkeys(places):
        if path.is_file():
            yield (
                artifact_of(path),
                f"exported to {path.parent.relative_to(folder) if path.is_relative_to(folder) else path.parent}",
            )


def artifact_of(path: Path) -> Artifact:
    """The artifact that an exported manifest or record names.

    Raises:
        DamagedError: the manifest was altered; what it needed can no longer be told.
    """
    if path.name != MANIFEST:
        return digest_of(path.read_bytes())
    manifest = read_manifest(path.parent)
    return Artifact(manifest["kind"], manifest["digest"])


def revisions(p: Placed, store: Store) -> Iterator[tuple[Artifact, str]]:
    """What the `dvc.lock` of every revision names."""
    folder = checkout(p.folder)
    records = {
        md5((store.place(run) / RECORD).read_bytes()): run for run in artifacts(store, KIND) if sound(store, run)
    }
    for name, lock in locks(folder):
        for out in (out for stage in lock.values() for out in stage.get("outs", [])):
            if out.get("md5") in records:
                yield records[out["md5"]], f"dvc.lock of {name}"
            elif str(out.get("md5")).endswith(".dir") and (found := in_cache(folder, out["md5"])) is not None:
                yield found, f"dvc.lock of {name}"


def sound(store: Store, run: Artifact) -> bool:
    """Whether a record is there."""
    return (store.place(run) / RECORD).is_file()


def locks(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every `dvc.lock`: of the working tree, and of all commits of all references; equal ones once."""
    if (folder / "dvc.lock").is_file():
        yield "the working tree", read_stages((folder / "dvc.lock").read_bytes(), "dvc.lock")
    seen = set()
    for line in git(folder, "log", "--all", "--reflog", "--format=%H", "--", "dvc.lock").decode().split():
        blob = git(folder, "rev-parse", f"{line}:./dvc.lock").decode().strip()
        if blob and blob not in seen:
            seen.add(blob)
            yield line[:8], read_stages(git(folder, "cat-file", "blob", blob), f"dvc.lock of {line[:8]}")


def git(folder: Path, *words: str) -> bytes:
    """The output of git; empty where it fails, as outside a repository."""
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


@cache
def in_cache(folder: Path, name: str) -> Artifact | None:
    """The artifact that was exported to a folder which DVC's cache has; null where it has none."""
    cache_folder = folder / ".dvc" / "cache" / "files" / "md5"
    listing = cache_folder / name[:2] / name[2:]
    if not listing.is_file():
        return None
    try:
        named = [file["md5"] for file in json.loads(listing.read_bytes()) if file["relpath"] == MANIFEST]
        for md5 in (each for each in named if re.fullmatch("[0-9a-f]{32}", each)):
            if (path := cache_folder / md5[:2] / md5[2:]).is_file():
                manifest = json.loads(path.read_bytes())
                return Artifact(manifest["kind"], manifest["digest"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(
            f"DVC's cache has a damaged list of files, {listing} ({error!r}): remove it, and bring it again with `dvc fetch`."
        ) from error
    return None
