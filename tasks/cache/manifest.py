"""Manifests: names, sizes and hashes of the files of an artifact, which make it impossible to alter one unnoticed.

The digest of an artifact is the sha256 of the canonical JSON of its kind and the sha256 of each file. A manifest carries `seal`, the
sha256 of the rest of it, so that one flipped byte is noticed there as well as in a file. Names may not lead out of the folder, and
links are refused: an artifact is plain files and nothing else.

Presence, kind of file and size are checked on every use; the sha256 is computed once per process and file (1.8 GB/s), and again if
inode, size or time of change differ.
"""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgaa.checkpoints.ownership import file_digest as file_digest
from mgaa.checkpoints.ownership import fresh_digest
from mgaa.errors import InputError

MANIFEST = "manifest.json"
RUN, RECORD = "run", "record.json"
"""Kind and file name of the record of a run."""


class DamagedError(InputError):
    """A file of the store is missing, truncated, altered or not what its manifest says."""


def check_folder(folder: Path, kind: str, name: str) -> dict[str, Any]:
    """Check everything in `folder` against its manifest, and return the manifest of the artifact `kind`/`name`."""
    manifest = read_manifest(folder)
    files: dict[str, Any] = manifest["files"]
    if (manifest["kind"], manifest["digest"]) != (kind, name):
        raise DamagedError(f"{folder / MANIFEST} describes {manifest['kind']}/{manifest['digest']}, not its folder.")
    if content_digest(kind, {file: entry["sha256"] for file, entry in files.items()}) != name:
        raise DamagedError(f"The files listed in {folder / MANIFEST} do not give the digest {name}.")
    for file in files:
        refuse_escape(folder, file)
    found = regular_files(folder)
    if differing := set(found) ^ {*files, MANIFEST}:
        raise DamagedError(f"{folder} does not hold the files of its manifest: {', '.join(sorted(differing))} differ.")
    for file, entry in files.items():
        check_file(folder / file, found[file], entry)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder, checked against its own seal; raises `DamagedError`."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        seal = manifest.pop("seal")
        sound = digest(manifest) == seal and all(
            "sha256" in file and "size" in file for file in manifest["files"].values()
        )
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing: expected a sealed artifact.") from error
    except (ValueError, KeyError, TypeError, AttributeError, NotADirectoryError, RecursionError) as error:
        raise DamagedError(f"{path} is not a manifest ({error!r}).") from error
    if not sound:
        raise DamagedError(f"{path} was altered after it was sealed.")
    return dict(manifest)


def refuse_escape(folder: Path, name: str) -> None:
    """Raise `DamagedError` for a name that could lie outside `folder`."""
    parts = name.split("/")
    if "\\" in name or "\0" in name or not all(part and part not in (".", "..") for part in parts) or name == MANIFEST:
        raise DamagedError(f"The name {name!r} does not stay inside {folder}: expected a relative path without '..'.")


def regular_files(folder: Path) -> dict[str, os.stat_result]:
    """Files below `folder` by relative name; a symbolic link or special file is refused."""
    found = {}
    if folder.is_symlink():
        raise DamagedError(f"{folder} is a link: expected a folder.")
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place) / name
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found[path.relative_to(folder).as_posix()] = status
            elif not stat.S_ISDIR(status.st_mode):
                raise DamagedError(f"{path} is a link or a special file: expected a regular file.")
    return found


def check_file(path: Path, status: os.stat_result, expected: Mapping[str, Any]) -> None:
    """Compare one file with its entry in the manifest; raises `DamagedError`."""
    if status.st_size != expected["size"]:
        raise DamagedError(f"{path} has {status.st_size} bytes: expected {expected['size']}.")
    if file_digest(path, status) != expected["sha256"]:
        raise DamagedError(f"{path} was altered: its sha256 is not {expected['sha256'][:12]}....")


def describe_file(path: Path) -> dict[str, Any]:
    """Size and sha256 of a new file, for its manifest."""
    return {"size": path.stat().st_size, "sha256": fresh_digest(path)}


def content_digest(kind: str, files: Mapping[str, str]) -> str:
    """Digest of an artifact: sha256 of its kind and the sha256 of each file."""
    return digest({"kind": kind, "files": dict(files)})


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def format_json(value: Any) -> bytes:
    """Format JSON for people."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
