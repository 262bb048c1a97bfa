"""Whole or not at all: every folder and file of a run appears complete, or does not appear.

A folder is written under `.tmp-<pid>-<rand>` beside its target, flushed to disk, and renamed; rename is the one operation of a file
system that is atomic and survives a crash, so a killed run leaves a temporary folder and never half a result. The random part begins
with a digest of the host's name: `sweep` then removes what dead processes of this machine left, and nothing of another machine that
shares the disk. A full, read-only or limited disk becomes one `ResourceError` that says what was missing, whoever raised it (Python,
or a Rust library whose error carries only the text "os error 28").
"""

import errno
import hashlib
import os
import re
import resource
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mgaa.errors import MgaaError, ResourceError

HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
TEMPORARY = re.compile(rf"\.tmp-(\d+)-{HOST}[0-9a-f]{{8}}$")

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def temporary(parent: Path) -> Iterator[Path]:
    """A fresh folder in `parent`; it is removed at the end unless it was renamed into its place."""
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        folder = parent / f".tmp-{os.getpid()}-{HOST}{secrets.token_hex(4)}"
        folder.mkdir()
    try:
        with disk_errors(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `target` when the block ends well, and leaves `target` alone when it does not."""
    sweep(target.parent)
    with temporary(target.parent) as folder:
        yield folder
        flush(folder)
        with temporary(target.parent) as discarded:
            if target.exists():
                os.rename(target, discarded / target.name)
            try:
                os.rename(folder, target)
            except OSError:
                if (discarded / target.name).exists():
                    os.rename(discarded / target.name, target)
                raise
            flush_folder(target.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write or replace one small file, whole or not at all."""
    with temporary(path.parent) as folder:
        draft = folder / path.name
        draft.write_bytes(content)
        flush_file(draft)
        os.replace(draft, path)
        flush_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove the temporary folders that dead processes of this machine left in `folder`."""
    if not folder.is_dir():
        return
    for entry in list(folder.iterdir()):
        match = TEMPORARY.match(entry.name)
        if match and not alive(int(match[1])):
            shutil.rmtree(entry, ignore_errors=True)


def alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def flush(folder: Path) -> None:
    """Force every file and folder below `folder` to the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            flush_file(Path(place) / name)
        flush_folder(Path(place))


def flush_file(path: Path) -> None:
    """Force one file's content to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    """Force a folder's entries (a rename, a new file) to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    free = shutil.disk_usage(nearest(folder)).free
    room = f"{megabytes(written)} written, {megabytes(free)} free on that disk"
    if code == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        most = "" if limit == resource.RLIM_INFINITY else f" of {megabytes(limit)} a file"
        remedy = f"Lift the limit{most} with `ulimit -f unlimited`"
    elif code in FULL:
        remedy = "Make room, or put the store on a larger disk with store.path=<folder>"
    else:
        remedy = "Make the folder writable, or choose another one with store.path=<folder>"
    return f"Cannot write {path}: {os.strerror(code)} ({room}). {remedy}, and start again; finished steps are kept."


def nearest(path: Path) -> Path:
    """`path`, or its nearest parent that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def megabytes(count: int) -> str:
    """A count of bytes as people read it."""
    return f"{count / 1e6:.1f} MB"
