"""One scheduled run at a time on a device, wherever it was started from.

A lock of the operating system for each card, or for the CPU, of this machine. It is held from before the first step to the end of the run
and vanishes with its process, however that ends. Prefect's limits do not: a run that was killed outright counts in the limit of its work
pool until somebody ends its record, so that nothing would ever start again; a global limit is polled slowly and is passed over where it
is missing. Runs by hand (`python -m flows.compress`) take no turn, for two small ones may well share a card; one that should is started
as `prefect deployment run scheduled/compress`.
"""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mgaa.errors import LockedError, ResourceError
from tasks.cache.atomic import disk_errors


@contextmanager
def turn(devices: list[str], holder: str, patience: float, waiting: Callable[[str], object]) -> Iterator[None]:
    """Hold these devices inside the block.

    Args:
        devices: their names, in an order that is the same for all.
        holder: what others are told about who holds them.
        patience: seconds to wait for another run.
        waiting: is told once for each device that another run holds.

    Raises:
        LockedError: another run holds one of them for longer.
    """
    with ExitStack() as held:
        for device in devices:
            held.enter_context(alone(device, holder, patience, waiting))
        yield


@contextmanager
def alone(device: str, holder: str, patience: float, waiting: Callable[[str], object]) -> Iterator[None]:
    """Hold one device."""
    with disk_errors(Path(tempfile.gettempdir())):
        path = folder() / device
    lock = FileLock(path.with_suffix(".lock"), fallback_to_soft=False)
    with disk_errors(path.parent):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            other = path.read_text(encoding="utf-8") if path.exists() else "another run"
            waiting(f"{device} is in use by {other}; waiting for it")
            try:
                lock.acquire(timeout=patience, poll_interval=0.5)
            except Timeout as error:
                raise LockedError(
                    f"{device} is in use by {other}, expected it to be free within {patience:g} s. Wait for that run or stop it, or raise "
                    "store.lock_timeout."
                ) from error
    try:
        path.write_text(holder, encoding="utf-8")
        yield
    finally:
        lock.release()


def folder() -> Path:
    """Make the folder where the locks of this user's runs on this machine lie, closed to all others.

    Raises:
        ResourceError: another user has made something of this name, and could have put links there that lead to this user's files.
    """
    path = Path(tempfile.gettempdir()) / f"mgaa-{os.getuid()}"
    if not path.is_symlink() and not path.exists():
        path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ResourceError(
            f"{path} is a link, belongs to another user or can be written by others, expected a folder of this user alone for the locks "
            "of devices: remove it, or set TMPDIR to another folder."
        )
    return path


def devices(name: str) -> list[str]:
    """The devices behind `cpu`, `cuda` (every card that this process sees) or `cuda:<number>`, by names that all processes agree on."""
    kind, _, number = name.partition(":")
    if kind != "cuda":
        return [kind]
    import torch

    seen = [int(number)] if number else range(torch.cuda.device_count())
    return sorted(f"cuda-{torch.cuda.get_device_properties(index).uuid}" for index in seen)
