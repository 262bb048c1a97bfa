"""The lock of a store: runs share it, upkeep holds it exclusively.

It is an operating-system lock on one file of the store, held by the process of the flow (which outlives its workers) and released when that
process ends, however it ends. So nothing that a running flow needs can be removed under it, without any list of what that is.
On a disk shared by several machines it is as reliable as that disk's locks.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mgaa.errors import LockedError
from tasks.cache.atomic import disk_errors

FILE = "in-use"
PAUSE = 0.1
"""Seconds between two attempts."""


@contextmanager
def share_store(store: Path) -> Iterator[None]:
    """Share the store with other runs inside this block; waits for upkeep, which takes seconds.

    A store that this process cannot write is only read, and cannot be collected from here either: it is not locked.
    """
    if store.is_dir() and not os.access(store, os.W_OK, effective_ids=True):
        yield
        return
    with _open_lock(store) as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


@contextmanager
def lock_store(store: Path, timeout: float) -> Iterator[None]:
    """Hold the store exclusively inside this block.

    Raises:
        LockedError: runs still use it after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    with _open_lock(store) as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise LockedError(
                        f"A run uses the store {store}; waited {timeout:g} s. Wait for it or stop it, or give --wait more seconds: what a "
                        "running flow needs is never removed."
                    ) from None
                time.sleep(PAUSE)
        yield


@contextmanager
def _open_lock(store: Path) -> Iterator[int]:
    with disk_errors(store):
        store.mkdir(parents=True, exist_ok=True)
        handle = os.open(store / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)
