"""Atomic output: every folder and file of a run appears complete, or not at all.

A folder is written as a draft next to its target, flushed to disk, and renamed or exchanged (`mgaa.checkpoints.output_folder`). In the
store, which is ours alone, that suffices (`temporary_folder`, `write_file`); in folders of users (`replace_folder`, `place_files`,
`publish_file`), nothing is replaced that is not ours (`mgaa.checkpoints.ownership`). A full, read-only or limited disk becomes one
`ResourceError` that names what is missing, whatever raised it (Python, or a Rust library whose error carries only the text "os error 28").
"""

import errno
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mgaa.checkpoints import output_folder
from mgaa.checkpoints.output_folder import flush, flush_file, flush_folder, is_alive, remove_stale_drafts
from mgaa.errors import MgaaError, ResourceError
from tasks.cache.earlier import earlier_outputs

__all__ = [
    "disk_errors",
    "flush",
    "flush_folder",
    "is_alive",
    "place_files",
    "publish_file",
    "remove_stale_drafts",
    "replace_folder",
    "temporary_folder",
    "write_file",
]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Create a fresh folder in `parent`; it is removed at the end unless it was renamed into its place."""
    with disk_errors(parent), output_folder.temporary_folder(parent) as folder, disk_errors(folder):
        yield folder


@contextmanager
def replace_folder(target: Path) -> Iterator[Path]:
    """Create a folder to fill, which replaces `target` when the block succeeds, and leaves `target` alone when it fails."""
    with (
        disk_errors(target.parent),
        output_folder.replace_folder(target, also=earlier_outputs) as folder,
        disk_errors(folder),
    ):
        yield folder


@contextmanager
def place_files(folder: Path) -> Iterator[Path]:
    """Create a folder to fill, whose files take their places in `folder` when the block succeeds, all or none."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder), output_folder.place_files(folder, also=earlier_outputs) as draft, disk_errors(draft):
        yield draft


def publish_file(path: Path, content: bytes) -> None:
    """Write or replace one file for users, atomically."""
    with place_files(path.parent) as draft:
        (draft / path.name).write_bytes(content)


def write_file(path: Path, content: bytes) -> None:
    """Write or replace one small file in a folder that is ours alone (the store, a draft), atomically."""
    with temporary_folder(path.parent) as folder:
        draft = folder / path.name
        draft.write_bytes(content)
        flush_file(draft)
        os.replace(draft, path)
        flush_folder(path.parent)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full, limited or read-only disk below `folder` into one `ResourceError`; every other error passes unchanged."""
    try:
        yield
    except MgaaError:
        raise
    except (
        Exception
    ) as error:  # Rust libraries raise their own types; errors that do not concern the disk are raised again
        code = disk_error(error, folder)
        if code is None:
            raise
        raise ResourceError(explain_disk_error(code, folder, error)) from error


def disk_error(error: Exception, folder: Path) -> int | None:
    """Errno of an error in writing below `folder`; None for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (match := re.search(r"os error (\d+)", str(error))):
        code = int(match[1])
    if code in FULL or code == errno.EROFS:
        return code
    named = getattr(error, "filename", None) or folder
    inside = Path(os.path.abspath(named)).is_relative_to(nearest_existing(folder).absolute())
    return code if code in CLOSED and inside else None


def explain_disk_error(code: int, folder: Path, error: Exception) -> str:
    """Message for a disk error: what was being written, how much of it, how much room is left, and the remedy."""
    path = getattr(error, "filename", None) or folder
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    place = fullest(error, folder)
    room = f"{megabytes(written)} written, {megabytes(shutil.disk_usage(place).free)} free on the disk of {place}"
    if code == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        most = "" if limit == resource.RLIM_INFINITY else f" of {megabytes(limit)} a file"
        remedy = f"Lift the limit{most} with `ulimit -f unlimited`"
    elif code in FULL and place.stat().st_dev != nearest_existing(folder).stat().st_dev:
        remedy = "Make room there, or set TMPDIR to a folder on a larger disk"
    elif code in FULL:
        remedy = "Make room, or put the store on a larger disk with store.path=<folder>"
    else:
        remedy = "Make the folder writable, or choose another one with store.path=<folder>"
    return f"Cannot write {path}: {os.strerror(code)} ({room}). {remedy}, and start again; finished steps are kept."


def fullest(error: Exception, folder: Path) -> Path:
    """Path on the full disk: the file that the error names, otherwise the candidate with the least free space."""
    if isinstance(named := getattr(error, "filename", None), str | bytes):
        return nearest_existing(Path(os.fsdecode(named)))
    return min((nearest_existing(folder), Path(tempfile.gettempdir())), key=lambda place: shutil.disk_usage(place).free)


def nearest_existing(path: Path) -> Path:
    """Return `path`, or its nearest parent that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def megabytes(count: int) -> str:
    """Format a number of bytes for people."""
    return f"{count / 1e6:.1f} MB"
