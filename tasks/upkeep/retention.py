"""Artifacts that must be kept: the ancestors of every exported checkpoint, DVC revision, pin and recent run.

Checkpoints and records are found where they were exported, below the folder of `params.yaml`. The DVC revisions are those of every branch,
tag, stash and experiment: their `dvc.lock` names records by MD5, which the store knows, and folders, whose manifests are in DVC's cache. A
revision with neither was made elsewhere, or with a store that is gone: it needs nothing of this one as far as can be known.
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
from tasks.config.parameters import PathSections, checkout_of
from tasks.record.lineage import ancestry, node_of
from tasks.record.run_record import KIND, digest_of, keys_of, md5, read_record
from tasks.upkeep.pins import pins


def needed_artifacts(params: PathSections, store: Store, latest: int) -> dict[Artifact, str]:
    """Map every artifact that is needed to the reason.

    Args:
        latest: number of latest runs that are kept in any case.
    """
    reasons: dict[Artifact, str] = {}
    for root, why in roots(params, store, latest):
        for artifact in ancestors(store, root):
            reasons.setdefault(artifact, why)
    return reasons


def roots(params: PathSections, store: Store, latest: int) -> Iterator[tuple[Artifact, str]]:
    """List the artifacts that are needed for their own sake, with the reasons."""
    yield from ((pin.artifact, f"pinned{f': {pin.why}' if pin.why else ''}") for pin in pins(store))
    yield from exported_artifacts(params)
    yield from revisions(params, store)
    ends = {run: node_of(store, run).manifest.get("end", "") for run in artifacts(store, KIND)}
    for run in sorted(ends, key=lambda each: ends[each], reverse=True)[:latest]:
        yield run, "one of the latest runs"


def ancestors(store: Store, root: Artifact) -> set[Artifact]:
    """A root with all its ancestors, by its own manifest and by every run that used it."""
    runs = [root] if root.kind == KIND else [*runs_with(store, root)]
    ways: list[dict[Artifact, str]] = [
        {},
        *(keys_of(read_record(store, run)) for run in runs if store.path_of(run).is_dir()),
    ]
    return {artifact for keys in ways for artifact in ancestry(store, [root], keys)}


def exported_artifacts(params: PathSections) -> Iterator[tuple[Artifact, str]]:
    """List the checkpoints and records below the folder of `params.yaml`."""
    folder = checkout_of(params.folder)
    patterns = (f"models/*/{MANIFEST}", *(f"{depth}/*{RECORD}" for depth in ("*", "*/*")))
    places = [path for pattern in patterns for path in folder.glob(pattern)]
    places += [params.folder / params.output.checkpoint / MANIFEST, *params.results.glob(f"*{RECORD}")]
    for path in dict.fromkeys(places):
        if path.is_file():
            yield (
                artifact_of(path),
                f"exported to {path.parent.relative_to(folder) if path.is_relative_to(folder) else path.parent}",
            )


def artifact_of(path: Path) -> Artifact:
    """Artifact that an exported manifest or record names.

    Raises:
        DamagedError: the manifest was altered; what it needed is no longer known.
    """
    if path.name != MANIFEST:
        return digest_of(path.read_bytes())
    manifest = read_manifest(path.parent)
    return Artifact(manifest["kind"], manifest["digest"])


def revisions(params: PathSections, store: Store) -> Iterator[tuple[Artifact, str]]:
    """List the artifacts that the `dvc.lock` of any revision names."""
    folder = checkout_of(params.folder)
    records = {
        md5((store.path_of(run) / RECORD).read_bytes()): run
        for run in artifacts(store, KIND)
        if is_sound_record(store, run)
    }
    for name, lock in read_locks(folder):
        for out in (out for stage in lock.values() for out in stage.get("outs", [])):
            if out.get("md5") in records:
                yield records[out["md5"]], f"dvc.lock of {name}"
            elif str(out.get("md5")).endswith(".dir") and (exported := cached_artifact(folder, out["md5"])) is not None:
                yield exported, f"dvc.lock of {name}"


def is_sound_record(store: Store, run: Artifact) -> bool:
    """Tell whether the store has the record file of a run."""
    return (store.path_of(run) / RECORD).is_file()


def read_locks(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read every distinct `dvc.lock`, of the working tree and of all commits of all references."""
    if (folder / "dvc.lock").is_file():
        yield "the working tree", read_stages((folder / "dvc.lock").read_bytes(), "dvc.lock")
    seen = set()
    for line in run_git(folder, "log", "--all", "--reflog", "--format=%H", "--", "dvc.lock").decode().split():
        blob = run_git(folder, "rev-parse", f"{line}:./dvc.lock").decode().strip()
        if blob and blob not in seen:
            seen.add(blob)
            yield line[:8], read_stages(run_git(folder, "cat-file", "blob", blob), f"dvc.lock of {line[:8]}")


def run_git(folder: Path, *words: str) -> bytes:
    """Run git and return its output; empty where it fails, as outside a repository."""
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


@cache
def cached_artifact(folder: Path, name: str) -> Artifact | None:
    """Artifact that was exported to a folder, by the folder's listing in DVC's cache; None if the cache lacks it."""
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
            f"DVC's cache has a damaged list of files, {listing} ({error!r}): remove it, and fetch it again with `dvc fetch`."
        ) from error
    return None
