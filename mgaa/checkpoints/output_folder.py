"""Outputs appear whole, and replace only what this project wrote: every writer of a folder or file that a user names goes through here.

    with replacing(Path("models/compressed")) as draft:    # the folder is replaced as a whole
        ...
    with placing(Path("results")) as draft:                # files take their places among others
        ...

What is written is a draft on the same disk, `.tmp-<process>-<machine><random>`; complete and flushed, it changes places with what it
replaces in one step (`renameat2` with RENAME_EXCHANGE, Linux), and what was there is removed last. So whoever reads sees the old or
the new, and a failure or a kill at any moment leaves the old whole; drafts of dead processes are swept by the next writer. Whatever is
not ours (`mgaa.checkpoints.ownership`) is refused before the work, and again in the moment of the exchange.

Where the file system cannot exchange (NFS, some FUSE, other systems), the old is renamed to `.<name>.mgaa-old` and the new to its place:
a kill between these two leaves no folder of that name, and the next writer renames the old back. Where no draft can lie beside a folder
(a mount point, the working folder, a parent that is closed), it lies inside; then the folder must be empty, for it cannot be exchanged.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mgaa.checkpoints.ownership import (
    LITTER,
    MARK,
    Witness,
    check_apart,
    check_files,
    check_folder,
    file_digest,
    foreign,
    is_ours,
    listed,
    merged,
    nothing_else,
    sums_below,
    write_mark,
)
from mgaa.errors import ResourceError

HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
TEMPORARY = re.compile(rf"\.tmp-(\d+)-{HOST}[0-9a-f]{{8}}$")
"""Names of drafts: the process that writes, and this machine."""

CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def replacing(
    target: str | Path, *, reads: Iterable[Path] = (), also: Witness = nothing_else, key: str | None = None
) -> Iterator[Path]:
    """A draft to fill that takes the place of a folder when the block ends well; else the folder stays as it is.

    Args:
        target: the folder; a link to a folder stays, and what it leads to is replaced.
        reads: what the block reads, which `target` must not touch.
        also: knows what is ours beside what marks say.
        key: of a draft that outlives a failed or killed block, and is taken up by the next one of the same key; by default none does.

    Raises:
        UsageError: the folder holds what is not ours, or is, holds or lies in what is read.
        ResourceError: it is no folder, may not be written, or cannot be exchanged.
        OSError: a write failed.
    """
    for read in reads:
        check_apart(Path(target), read, "what is read")
    place = settled(target)
    check_folder(place, also)
    if reason := _held(place):
        _check_empty(place, reason)
        with placing(place) as out:
            yield out
        return
    with temporary(place.parent) if key is None else _kept(place, key) as out:
        yield out
        write_mark(out, sums_below(out))
        if place.is_dir():
            shutil.copymode(place, out)
        flush(out)
        check_folder(place, also)
        swap(out, place)
        if foreign(out, also):  # put there in the moment of the exchange
            swap(out, place)
            check_folder(place, also)
        flush_folder(place.parent)


@contextmanager
def placing(folder: str | Path, *, also: Witness = nothing_else) -> Iterator[Path]:
    """A draft whose files take their places in a folder when the block ends well, all or none; what lies beside them stays.

    Raises:
        UsageError: a file of that name is not ours.
        ResourceError: the folder is none, or may not be written.
        OSError: a write failed.
    """
    place = Path(os.path.realpath(folder))
    check_files(place, ())
    sweep(place)
    with temporary(place) as out:
        yield out
        names = sorted({*os.listdir(out)} - {MARK})
        new = sums_below(out)
        with _alone(place):
            for name in names:
                _put_back(place / name)
            check_files(place, names, also)
            write_mark(out, merged(_present(place, merged(listed(place), also(place))), new))
            flush(out)
            _swap_all(out, place, [MARK, *names])
            flush_folder(place)


def write(path: str | Path, content: bytes, *, also: Witness = nothing_else) -> None:
    """Write or replace one file of ours, whole or not at all; raises as `placing`."""
    path = Path(path)
    with placing(path.parent, also=also) as out:
        (out / path.name).write_bytes(content)


@contextmanager
def temporary(parent: Path) -> Iterator[Path]:
    """A fresh folder in `parent`; what is at its path in the end is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f".tmp-{os.getpid()}-{HOST}{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _kept(place: Path, key: str) -> Iterator[Path]:
    """The draft of a key, which is removed only when it has become the output; those of other keys have then become useless."""
    start = f".{place.name}.mgaa-"
    folder = place.parent / f"{start}{key}"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for path in list(place.parent.iterdir()):
        if path.name.startswith(start):
            shutil.rmtree(path, ignore_errors=True)


def settled(target: str | Path) -> Path:
    """Where an output really lies, after what an interrupted exchange or a dead process left there was put in order."""
    place = Path(os.path.realpath(target))
    _put_back(place)
    sweep(place.parent)
    return place


def _put_back(place: Path) -> None:
    aside = _aside(place)
    if os.path.lexists(aside):
        if os.path.lexists(place):
            _remove(aside)
        else:
            os.rename(aside, place)


def swap(new: Path, place: Path) -> None:
    """Let two paths change places in one step; where there is nothing at `place`, `new` is renamed."""
    if not os.path.lexists(place):
        os.rename(new, place)
        return
    try:
        exchange(new, place)
    except OSError as error:
        if error.errno not in CANNOT_EXCHANGE:
            raise
        _exchange_by_renames(new, place)


def exchange(one: Path, other: Path) -> None:
    """`renameat2` with RENAME_EXCHANGE; raises `OSError` where that is not known."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one), None, str(other))


def _exchange_by_renames(new: Path, place: Path) -> None:
    aside = _aside(place)
    steps, done = [(place, aside), (new, place), (aside, new)], list[tuple[Path, Path]]()
    try:
        for step in steps:
            os.rename(*step)
            done.append(step)
    except BaseException:
        for before, behind in reversed(done):
            os.rename(behind, before)
        raise


def _aside(place: Path) -> Path:
    return place.with_name(f".{place.name}.mgaa-old")


def _swap_all(out: Path, place: Path, names: Sequence[str]) -> None:
    """Each in one step; where one fails, those before it go back."""
    done: list[str] = []
    try:
        for name in names:
            swap(out / name, place / name)
            done.append(name)
    except BaseException:
        for name in reversed(done):
            if os.path.lexists(out / name):
                swap(out / name, place / name)
            else:
                os.rename(place / name, out / name)
        raise


def _present(folder: Path, known: dict[str, set[str]]) -> dict[str, set[str]]:
    """Of what is known, the files that are there, with the content that they have."""
    return {
        name: {file_digest(folder / name, (folder / name).stat())}
        for name, sums in known.items()
        if is_ours(folder / name, sums)
    }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Write the mark of a folder alone, where its file system has locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _held(place: Path) -> str:
    """Why no draft can take the place of a folder, if so."""
    if place.is_mount():
        return "a disk is mounted there"
    if place.is_dir() and place.samefile(os.curdir):
        return "it is the working folder"
    if place.is_dir() and not os.access(place.parent, os.W_OK | os.X_OK):
        return f"{place.parent} may not be written"
    return ""


def _check_empty(place: Path, reason: str) -> None:
    sweep(place)
    if there := sorted({entry.name for entry in os.scandir(place)} - LITTER):
        raise ResourceError(
            f"{place} holds {', '.join(there[:3])} of an earlier output, which cannot be exchanged as a whole, for {reason}: "
            "give a folder inside of it, or empty it"
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the drafts that dead processes of this machine left in `folder`."""
    if not folder.is_dir() or not os.access(folder, os.R_OK):
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
