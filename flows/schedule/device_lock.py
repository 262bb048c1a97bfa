"""A lock for each device, so that scheduled runs take turns on it, wherever they were started from.

It is an operating-system lock for each card, or for the CPU, of this machine, held from before the first step to the end of the run
and released when the process ends, however it ends. Prefect's limits do not suffice: a run that was killed outright counts in the limit of
its work pool until somebody ends its record, so that nothing would ever start again; a global limit is polled slowly and is ignored if it
is missing. Runs started by hand (`python -m flows.compress`) take no lock, since two small ones may well share a card; one that should is
started as `prefect deployment run scheduled/compress`.
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
def hold_devices(devices: list[str], holder: str, patience: float, waiting: Callable[[str], object]) -> Iterator[None]:
    """Hold these devices inside the block.

    Args:
        devices: their names, in the same order for all runs.
        holder: description of this run, for the messages of others.
        patience: seconds to wait for another run.
        waiting: called with a message once for each device that another run holds.

    Raises:
        LockedError: another run holds one of them for longer.
    """
    with ExitStack() as held:
        for device in devices:
            held.enter_context(hold_device(device, holder, patience, waiting))
        yield


@contextmanager
def hold_device(device: str, holder: str, patience: float, waiting: Callable[[str], object]) -> Iterator[None]:
    """Hold one device inside the block."""
    with disk_errors(Path(tempfile.gettempdir())):
        path = lock_folder() / device
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


def lock_folder() -> Path:
    """Make the folder for the locks of this user's runs on this machine, closed to all others.

    Raises:
        ResourceError: something of this name belongs to another user, who could have put links to this user's files there.
    """
    path = Path(tempfile.gettempdir()) / f"mgaa-{os.getuid()}"
    if not path.is_symlink() and not path.exists():
        path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ResourceError(
            f"{path} is a link, belongs to another user or can be written by others, expected a folder of this user alone for the locks "
            "of devices: remove it, or set TMPDIR to another folder."
        )
    return path


def device_names(name: str) -> list[str]:
    """Names of the devices of `cpu`, `cuda` (every card visible to this process) or `cuda:<number>`, the same in all processes."""
    kind, _, number = name.partition(":")
    if kind != "cuda":
        return [kind]
    import torch

    indices = [int(number)] if number else range(torch.cuda.device_count())
    return sorted(f"cuda-{torch.cuda.get_device_properties(index).uuid}" for index in indices)
