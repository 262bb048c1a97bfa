"""Whether a store is in use: runs share it, housekeeping has it alone.

A lock of the operating system on one file of the store, held by the process of the flow (its workers live no longer than it) and gone
with the process, however that ends. So nothing that a running flow needs can be removed under it, and no list of that must be right.
On a disk that several machines share it holds as far as that disk supports locks.
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
"""Seconds between two tries."""


@contextmanager
def in_use(store: Path) -> Iterator[None]:
    """Share the store with other runs inside this block; waits for housekeeping, which takes seconds.

    A store that this process cannot write is only read, and nobody who may not write it keeps house in it: it is not locked.
    """
    if store.is_dir() and not os.access(store, os.W_OK, effective_ids=True):
        yield
        return
    with _opened(store) as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


@contextmanager
def alone(store: Path, timeout: float) -> Iterator[None]:
    """Have the store alone inside this block.

    Raises:
        LockedError: runs use it for longer than `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    with _opened(store) as handle:
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
def _opened(store: Path) -> Iterator[int]:
    with disk_errors(store):
        store.mkdir(parents=True, exist_ok=True)
        handle = os.open(store / FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)
