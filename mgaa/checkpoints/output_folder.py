"""Atomic outputs, which replace only what this project wrote: every writer of a folder or file that a user names uses this module.

    with replace_folder(Path("models/compressed")) as draft:    # replaces the folder as a whole
        ...
    with place_files(Path("results")) as draft:                 # replaces these files among others
        ...

Output is written to a draft on the same disk, `.tmp-<process>-<machine><random>`; complete and flushed, it is exchanged with its target in
one step (`renameat2` with RENAME_EXCHANGE, Linux), and the old content is removed last. So readers see either the old or the new, and a
failure or a kill at any moment leaves the old intact; drafts of dead processes are swept by the next writer. Anything that is not ours
(`mgaa.checkpoints.ownership`) is refused before the work, and again at the moment of the exchange.

Where the file system cannot exchange (NFS, some FUSE, other systems), the old is renamed to `.<name>.mgaa-old` and the new to its place: a
kill between the two leaves no folder of that name, and the next writer renames the old back. Where no draft can be created next to a folder
(a mount point, the working directory, a read-only parent), it is created inside; then the folder must be empty, because it cannot be
exchanged.
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
    foreign_files,
    is_ours,
    merge_sums,
    no_witness,
    read_mark,
    sums_below,
    write_mark,
)
from mgaa.errors import ResourceError

HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
TEMPORARY = re.compile(rf"\.tmp-(\d+)-{HOST}[0-9a-f]{{8}}$")
"""Names of drafts: the writing process, and this machine."""

CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextmanager
def replace_folder(
    target: str | Path, *, reads: Iterable[Path] = (), also: Witness = no_witness, key: str | None = None
) -> Iterator[Path]:
    """Yield a draft to fill that replaces a folder if the block succeeds; otherwise the folder stays unchanged.

    Args:
        target: the folder; a link to a folder stays, and its target is replaced.
        reads: folders that the block reads, with which `target` must not overlap.
        also: knows of further files of ours besides those in marks.
        key: of a draft that outlives a failed or killed block, so that the next block with the same key resumes it; by default none does.

    Raises:
        UsageError: the folder holds files that are not ours, or overlaps with what is read.
        ResourceError: it is not a folder, is not writable, or cannot be exchanged.
        OSError: a write failed.
    """
    for read in reads:
        check_apart(Path(target), read, "what is read")
    place = resolve_target(target)
    check_folder(place, also)
    if reason := _held(place):
        _check_empty(place, reason)
        with place_files(place) as out:
            yield out
        return
    with temporary_folder(place.parent) if key is None else _keyed_draft(place, key) as out:
        yield out
        write_mark(out, sums_below(out))
        if place.is_dir():
            shutil.copymode(place, out)
        flush(out)
        check_folder(place, also)
        swap(out, place)
        if foreign_files(out, also):  # put there at the moment of the exchange
            swap(out, place)
            check_folder(place, also)
        flush_folder(place.parent)


@contextmanager
def place_files(folder: str | Path, *, also: Witness = no_witness) -> Iterator[Path]:
    """Yield a draft whose files move into a folder if the block succeeds, all or none; other files in the folder stay.

    Raises:
        UsageError: a file of one of these names is not ours.
        ResourceError: the folder is not a folder, or is not writable.
        OSError: a write failed.
    """
    place = Path(os.path.realpath(folder))
    check_files(place, ())
    remove_stale_drafts(place)
    with temporary_folder(place) as out:
        yield out
        names = sorted({*os.listdir(out)} - {MARK})
        new = sums_below(out)
        with _alone(place):
            for name in names:
                _put_back(place / name)
            check_files(place, names, also)
            write_mark(out, merge_sums(_present(place, merge_sums(read_mark(place), also(place))), new))
            flush(out)
            _swap_all(out, place, [MARK, *names])
            flush_folder(place)


def write_output(path: str | Path, content: bytes, *, also: Witness = no_witness) -> None:
    """Write or replace one file of ours atomically; raises as `place_files`."""
    path = Path(path)
    with place_files(path.parent, also=also) as out:
        (out / path.name).write_bytes(content)


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Create a fresh folder in `parent`; whatever is at its path in the end is removed."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f".tmp-{os.getpid()}-{HOST}{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _keyed_draft(place: Path, key: str) -> Iterator[Path]:
    """Yield the draft of a key, which is removed only once it has become the output; drafts of other keys are then useless."""
    start = f".{place.name}.mgaa-"
    folder = place.parent / f"{start}{key}"
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for path in list(place.parent.iterdir()):
        if path.name.startswith(start):
            shutil.rmtree(path, ignore_errors=True)


def resolve_target(target: str | Path) -> Path:
    """Return the real path of an output, after repairing what an interrupted exchange or a dead process left there."""
    place = Path(os.path.realpath(target))
    _put_back(place)
    remove_stale_drafts(place.parent)
    return place


def _put_back(place: Path) -> None:
    aside = _aside(place)
    if os.path.lexists(aside):
        if os.path.lexists(place):
            _remove(aside)
        else:
            os.rename(aside, place)


def swap(new: Path, place: Path) -> None:
    """Exchange two paths in one step; if `place` does not exist, rename `new`."""
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
    """Call `renameat2` with RENAME_EXCHANGE; raises `OSError` where it is not supported."""
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
    """Exchange each in one step; where one fails, undo those before it."""
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
    """Return, of the known files, those that exist with known content."""
    return {
        name: {file_digest(folder / name, (folder / name).stat())}
        for name, sums in known.items()
        if is_ours(folder / name, sums)
    }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder while its mark is written, where its file system has locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _held(place: Path) -> str:
    """Return why no draft can replace a folder, or an empty text."""
    if place.is_mount():
        return "a disk is mounted there"
    if place.is_dir() and place.samefile(os.curdir):
        return "it is the working folder"
    if place.is_dir() and not os.access(place.parent, os.W_OK | os.X_OK):
        return f"{place.parent} is not writable"
    return ""


def _check_empty(place: Path, reason: str) -> None:
    remove_stale_drafts(place)
    if there := sorted({entry.name for entry in os.scandir(place)} - LITTER):
        raise ResourceError(
            f"{place} holds {', '.join(there[:3])} of an earlier output, which cannot be exchanged as a whole, because {reason}: "
            "give a folder inside it, or empty it"
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_stale_drafts(folder: Path) -> None:
    """Remove the drafts that dead processes of this machine left in `folder`."""
    if not folder.is_dir() or not os.access(folder, os.R_OK):
        return
    for entry in list(folder.iterdir()):
        match = TEMPORARY.match(entry.name)
        if match and not is_alive(int(match[1])):
            shutil.rmtree(entry, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Return whether a process of this number runs on this machine."""
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
