"""Whose files a folder holds: what may give way to a new output, and what belongs to somebody else.

Every folder that is written into holds `.mgaa.json`, which names the files that were written there with their sha256:

    {"files": {"config.json": ["5f6c..."], "model.safetensors": ["90ab..."]}, "written_by": "mgaa"}

A file is ours if it is named there (or in the mark of a folder above) and still has that content. So a file that a user put beside ours,
and one of ours that was edited, tuned or replaced, are foreign: nothing replaces or removes them. The mark holds neither times nor
paths, so that equal outputs are equal folders; it is copied with the folder, and a link into a cache is judged by what it leads to.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from mgaa.errors import ResourceError, UsageError

MARK = ".mgaa.json"
ANY = "*"
"""In the place of a sha256: whatever the content is."""
LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
"""What file managers leave in every folder, and nobody misses."""
SHOWN = 3

Sums = Mapping[str, Collection[str]]
"""sha256 of files by their name below a folder, the contents that each may have."""
Witness = Callable[[Path], Sums]
"""What else is known to be ours in a folder, beside its mark."""

Fingerprint = tuple[int, int, int, int]
hashes: dict[Fingerprint, str] = {}
"""sha256 of the files that this process has read."""


def nothing_else(folder: Path) -> Sums:
    """The witness of a folder whose mark says everything."""
    return {}


def listed(folder: Path) -> dict[str, set[str]]:
    """What the mark of a folder names; nothing where there is none, or one that cannot be read."""
    try:
        files = json.loads((folder / MARK).read_bytes())["files"]
        return {name: set(sums) for name, sums in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def write_mark(folder: Path, sums: Sums) -> None:
    """Let a folder say that these files are ours."""
    content = {"files": {name: sorted(sums[name]) for name in sorted(sums)}, "written_by": "mgaa"}
    (folder / MARK).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def sums_below(folder: Path) -> dict[str, set[str]]:
    """sha256 of every file of a folder that was just written."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MARK)
    return {path.relative_to(folder).as_posix(): {fresh_digest(path)} for path in paths}


def foreign(folder: Path, also: Witness = nothing_else) -> list[str]:
    """Names of what lies below a folder and is not ours, in order."""
    return [*_foreign(folder, {}, also)] if folder.is_dir() else []


def _foreign(folder: Path, above: Sums, also: Witness) -> Iterator[str]:
    known = merged(above, listed(folder), also(folder))
    try:
        entries = sorted(os.scandir(folder), key=lambda each: each.name)
    except PermissionError:
        yield "what cannot be read"
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


def merged(*several: Sums) -> dict[str, set[str]]:
    """All that these know."""
    found: dict[str, set[str]] = {}
    for sums in several:
        for name, known in sums.items():
            found.setdefault(name, set()).update(known)
    return found


def is_ours(path: Path, sums: Collection[str]) -> bool:
    """Whether a file, or what a link leads to, has one of these contents."""
    try:
        return bool(sums) and path.is_file() and (ANY in sums or file_digest(path, path.stat()) in sums)
    except OSError:  # whoever closed it has a reason
        return False


def check_folder(folder: Path, also: Witness = nothing_else) -> None:
    """Refuse to replace a folder that holds anything which is not ours.

    Raises:
        UsageError: it does.
        ResourceError: it is a file, lies below one, or may not be written.
    """
    _check_place(folder)
    if strangers := foreign(folder, also):
        raise UsageError(
            f"{folder} holds {_some(strangers)}, which mgaa did not write or which changed since, and all of the folder would be "
            "replaced: give another folder, or move what it holds elsewhere"
        )


def check_files(folder: Path, names: Iterable[str], also: Witness = nothing_else) -> None:
    """Refuse to replace files of a folder that are not ours; others may lie beside them.

    Raises:
        UsageError: one of them is not.
        ResourceError: the folder is a file, lies below one, or may not be written.
    """
    _check_place(folder)
    known = merged(listed(folder), also(folder))
    there = [name for name in names if os.path.lexists(folder / name)]
    if strangers := [name for name in there if not is_ours(folder / name, known.get(name, ()))]:
        raise UsageError(
            f"{folder} holds {_some(strangers)}, which mgaa did not write or which changed since, and would be replaced: give another "
            "folder, or move it elsewhere"
        )


def check_apart(target: Path, read: Path, what: str) -> None:
    """Refuse an output in the place of what is read, around it, or inside of it, by whatever path or link.

    Args:
        what: is read, in words.

    Raises:
        UsageError: as said.
    """
    if how := relation(target, read):
        raise UsageError(
            f"the output {target} {how} {what}, {read}: give another folder, apart from everything that is read"
        )


def relation(output: Path, read: Path) -> str:
    """How an output is related to what is read, by whatever path or link: `is`, `holds`, `lies in`, or not at all."""
    out, given = Path(os.path.realpath(output)), Path(os.path.realpath(read))
    if out == given or (out.exists() and given.exists() and out.samefile(given)):
        return "is"
    return "holds" if given.is_relative_to(out) else "lies in" if out.is_relative_to(given) else ""


def _check_place(folder: Path) -> None:
    nearest = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "may not be written" if nearest.is_dir() else "is no folder"
        raise ResourceError(f"an output cannot be written to {folder}, for {nearest} {reason}: give another folder")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def fresh_digest(path: Path) -> str:
    """sha256 of a new file; always read, for a new file may reuse an inode within one clock tick."""
    status = path.stat()
    hashes.pop(fingerprint(status), None)
    return file_digest(path, status)


def file_digest(path: Path, status: os.stat_result) -> str:
    """sha256 of a file, computed once per process while the file stays as it is."""
    known = fingerprint(status)
    if known not in hashes:
        with path.open("rb") as file:
            hashes[known] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes[known]


def content_key(files: Iterable[Path]) -> str:
    """A short name for files as they are now, without reading them."""
    told = [(str(path.resolve()), *fingerprint(path.stat())) for path in sorted(files)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def fingerprint(status: os.stat_result) -> Fingerprint:
    """What changes when a file's content changes, without reading it; a rename leaves it as it is."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
