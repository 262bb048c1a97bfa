"""Ownership of the files in a folder: which may be replaced by a new output, and which belong to somebody else.

Every output folder holds `.mgaa.json`, which names the files that were written there with their sha256:

    {"files": {"config.json": ["5f6c..."], "model.safetensors": ["90ab..."]}, "written_by": "mgaa"}

A file is ours if it is named there (or in the mark of a folder above) and still has that content. So a file that a user added, and one of
ours that was edited, tuned or replaced, are foreign: nothing replaces or removes them. The mark contains neither times nor paths, so that
equal outputs are equal folders; it is copied with the folder, and a link into a cache is judged by its target.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from mgaa.errors import ResourceError, UsageError

MARK = ".mgaa.json"
ANY = "*"
"""Stands for any sha256."""
LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""Files that file managers leave in every folder, and nobody misses."""
SHOWN = 3

Sums = Mapping[str, Collection[str]]
"""Allowed sha256 of files, by name below a folder."""
Witness = Callable[[Path], Sums]
"""Returns further files in a folder that are known to be ours, besides its mark."""

Fingerprint = tuple[int, int, int, int]
hashes: dict[Fingerprint, str] = {}
"""sha256 of the files that this process has read, by fingerprint."""


def no_witness(folder: Path) -> Sums:
    """Return no further files: the mark of the folder is complete."""
    return {}


def read_mark(folder: Path) -> dict[str, set[str]]:
    """Read the mark of a folder; empty where there is none, or an unreadable one."""
    try:
        files = json.loads((folder / MARK).read_bytes())["files"]
        return {name: set(sums) for name, sums in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def write_mark(folder: Path, sums: Sums) -> None:
    """Mark these files of a folder as ours."""
    content = {"files": {name: sorted(sums[name]) for name in sorted(sums)}, "written_by": "mgaa"}
    (folder / MARK).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sums_below(folder: Path) -> dict[str, set[str]]:
    """Return the sha256 of every file of a folder that was just written."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MARK)
    return {path.relative_to(folder).as_posix(): {fresh_digest(path)} for path in paths}


def foreign_files(folder: Path, also: Witness = no_witness) -> list[str]:
    """List what lies below a folder and is not ours, in order."""
    return [*_foreign(folder, {}, also)] if folder.is_dir() else []


def _foreign(folder: Path, above: Sums, also: Witness) -> Iterator[str]:
    known = merge_sums(above, read_mark(folder), also(folder))
    try:
        entries = sorted(os.scandir(folder), key=lambda each: each.name)
    except PermissionError:
        yield "an unreadable entry"
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name in LITTER or (entry.name == MARK and entry.is_file()):
            continue
        if entry.is_dir(follow_symlinks=False):
            inside = {
                name.removeprefix(f"{entry.name}/"): sums
                for name, sums in known.items()
                if name.startswith(f"{entry.name}/")
            }
            yield from (f"{entry.name}/{name}" for name in _foreign(path, inside, also))
        elif not is_ours(path, known.get(entry.name, ())):
            yield entry.name


def merge_sums(*several: Sums) -> dict[str, set[str]]:
    """Merge the allowed contents of several sources."""
    merged: dict[str, set[str]] = {}
    for sums in several:
        for name, known in sums.items():
            merged.setdefault(name, set()).update(known)
    return merged


def is_ours(path: Path, sums: Collection[str]) -> bool:
    """Return whether a file, or the target of a link, has one of these contents."""
    try:
        return bool(sums) and path.is_file() and (ANY in sums or file_digest(path, path.stat()) in sums)
    except OSError:  # unreadable on purpose, so not ours
        return False


def check_folder(folder: Path, also: Witness = no_witness) -> None:
    """Refuse to replace a folder that holds anything that is not ours.

    Raises:
        UsageError: it holds such files.
        ResourceError: it is a file, lies below one, or is not writable.
    """
    _check_place(folder)
    if strangers := foreign_files(folder, also):
        raise UsageError(
            f"{folder} holds {_some(strangers)}, which mgaa did not write or which has changed since, and all of the folder would be "
            "replaced: give another folder, or move what it holds elsewhere"
        )


def check_files(folder: Path, names: Iterable[str], also: Witness = no_witness) -> None:
    """Refuse to replace files of a folder that are not ours; other files in it do not matter.

    Raises:
        UsageError: one of them is not ours.
        ResourceError: the folder is a file, lies below one, or is not writable.
    """
    _check_place(folder)
    known = merge_sums(read_mark(folder), also(folder))
    there = [name for name in names if os.path.lexists(folder / name)]
    if strangers := [name for name in there if not is_ours(folder / name, known.get(name, ()))]:
        raise UsageError(
            f"{folder} holds {_some(strangers)}, which mgaa did not write or which has changed since, and would be replaced: give another "
            "folder, or move it elsewhere"
        )


def check_apart(target: Path, read: Path, what: str) -> None:
    """Refuse an output that is, contains or lies in what is read, by whatever path or link.

    Args:
        what: description of `read`.

    Raises:
        UsageError: they overlap.
    """
    if how := relation(target, read):
        raise UsageError(
            f"the output {target} {how} {what}, {read}: give another folder, apart from everything that is read"
        )


def relation(output: Path, read: Path) -> str:
    """Return the relation of an output to what is read, by whatever path or link: `is`, `holds`, `lies in`, or empty."""
    out, source = Path(os.path.realpath(output)), Path(os.path.realpath(read))
    if out == source or (out.exists() and source.exists() and out.samefile(source)):
        return "is"
    return "holds" if source.is_relative_to(out) else "lies in" if out.is_relative_to(source) else ""


def _check_place(folder: Path) -> None:
    nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "is not writable" if nearest.is_dir() else "is not a folder"
        raise ResourceError(f"an output cannot be written to {folder}, because {nearest} {reason}: give another folder")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def fresh_digest(path: Path) -> str:
    """Return the sha256 of a new file; always read, because a new file may reuse an inode within one clock tick."""
    status = path.stat()
    hashes.pop(fingerprint(status), None)
    return file_digest(path, status)


def file_digest(path: Path, status: os.stat_result) -> str:
    """Return the sha256 of a file, computed once per process while the file does not change."""
    known = fingerprint(status)
    if known not in hashes:
        with path.open("rb") as file:
            hashes[known] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes[known]


def content_key(files: Iterable[Path]) -> str:
    """Return a short name for the current state of files, without reading them."""
    states = [(str(path.resolve()), *fingerprint(path.stat())) for path in sorted(files)]
    return hashlib.sha256(json.dumps(states).encode()).hexdigest()[:12]


def fingerprint(status: os.stat_result) -> Fingerprint:
    """Return values that change when a file's content changes, without reading it; unaffected by a rename."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
