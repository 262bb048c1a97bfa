"""Whole or not at all: every folder and file of a run appears complete, or does not appear.

A folder is written as a draft beside its target, flushed to disk, and renamed or exchanged (`mgaa.checkpoints.output_folder`). In the
store, which is ours alone, that is all (`temporary`, `write_file`); where people look (`replacing`, `placing`, `publish_file`), nothing
gives way that is not ours (`mgaa.checkpoints.ownership`). A full, read-only or limited disk becomes one `ResourceError` that says what was
missing, whoever raised it (Python, or a Rust library whose error carries only the text "os error 28").
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
from mgaa.checkpoints.output_folder import alive, flush, flush_file, flush_folder, sweep
from mgaa.errors import MgaaError, ResourceError
from tasks.cache.earlier import earlier

__all__ = [
    "alive",
    "disk_errors",
    "flush",
    "flush_folder",
    "placing",
    "publish_file",
    "replacing",
    "sweep",
    "temporary",
    "write_file",
]

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def temporary(parent: Path) -> Iterator[Path]:
    """A fresh folder in `parent`; it is removed at the end unless it was renamed into its place."""
    with disk_errors(parent), output_folder.temporary(parent) as folder, disk_errors(folder):
        yield folder


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `target` when the block ends well, and leaves `target` alone when it does not."""
    with disk_errors(target.parent), output_folder.replacing(target, also=earlier) as folder, disk_errors(folder):
        yield folder


@contextmanager
def placing(folder: Path) -> Iterator[Path]:
    """A folder to fill whose files take their places in `folder` when the block ends well, all or none."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder), output_folder.placing(folder, also=earlier) as draft, disk_errors(draft):
        yield draft


def publish_file(path: Path, content: bytes) -> None:
    """Write or replace one file that a user reads, whole or not at all."""
    with placing(path.parent) as draft:
        (draft / path.name).write_bytes(content)


def write_file(path: Path, content: bytes) -> None:
    """Write or replace one small file in a folder that is ours alone (the store, a draft), whole or not at all."""
    with temporary(path.parent) as folder:
        draft = folder / path.name
        draft.write_bytes(content)
        flush_file(draft)
        os.replace(draft, path)
        flush_folder(path.parent)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full, limited or closed disk below `folder` into one `ResourceError`; every other error passes unchanged."""
    try:
        yield
    except MgaaError:
        raise
    except Exception as error:  # Rust libraries raise their own types; whatever is not about the disk is raised again
        code = disk_error(error, folder)
        if code is None:
            raise
        raise ResourceError(explain(code, folder, error)) from error


def disk_error(error: Exception, folder: Path) -> int | None:
    """The errno of an error that is about writing below `folder`, else None."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (match := re.search(r"os error (\d+)", str(error))):
        code = int(match[1])
    if code in FULL or code == errno.EROFS:
        return code
    named = getattr(error, "filename", None) or folder
    inside = Path(os.path.abspath(named)).is_relative_to(nearest(folder).absolute())
    return code if code in CLOSED and inside else None


def explain(code: int, folder: Path, error: Exception) -> str:
    """What was being written, how much of it, how much room is left, and what to do."""
    path = getattr(error, "filename", None) or folder
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    place = fullest(error, folder)
    room = f"{megabytes(written)} written, {megabytes(shutil.disk_usage(place).free)} free on the disk of {place}"
    if code == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        most = "" if limit == resource.RLIM_INFINITY else f" of {megabytes(limit)} a file"
        remedy = f"Lift the limit{most} with `ulimit -f unlimited`"
    elif code in FULL and place.stat().st_dev != nearest(folder).stat().st_dev:
        remedy = "Make room there, or set TMPDIR to a folder on a larger disk"
    elif code in FULL:
        remedy = "Make room, or put the store on a larger disk with store.path=<folder>"
    else:
        remedy = "Make the folder writable, or choose another one with store.path=<folder>"
    return f"Cannot write {path}: {os.strerror(code)} ({room}). {remedy}, and start again; finished steps are kept."


def fullest(error: Exception, folder: Path) -> Path:
    """Where the disk is that is full: of the file that the error names; else, of what is written to, where the least room is left."""
    if isinstance(named := getattr(error, "filename", None), str | bytes):
        return nearest(Path(os.fsdecode(named)))
    return min((nearest(folder), Path(tempfile.gettempdir())), key=lambda place: shutil.disk_usage(place).free)


def nearest(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def megabytes(count: int) -> str:
    """A count of bytes as people read it."""
    return f"{count / 1e6:.1f} MB"
