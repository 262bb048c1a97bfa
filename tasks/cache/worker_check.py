"""What a run tells the worker processes that compute for it, so that a worker which cannot serve it says so instead of computing elsewhere.

A worker on another machine may see another folder under the name of the store, or hold another version of the project. Both would give
results that the run never finds: the first lie in a store that nobody reads, the second under other keys. So the store that travels to a
worker carries the identity that lies in it and the digest of the code, and the worker compares before its first step.
"""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from mgaa.errors import ResourceError
from tasks.cache.atomic import disk_errors, write_file
from tasks.cache.source import code_digest

IDENTITY = "identity"
"""The file in a store by which it is known."""


@dataclass(frozen=True)
class Home:
    """Where a run comes from.

    Attributes:
        run: its name, under which workers leave what they executed (tasks/cache/executions.py).
        host: the machine of the flow.
        code: digest of all code.
        identity: of the store's folder; empty where each machine has a folder of its own in front of `store.remote`.
    """

    run: str
    host: str
    code: str
    identity: str

    def check(self, path: Path) -> None:
        """Compare with what this process sees as the store at `path`; looked at once per process.

        Raises:
            ResourceError: another folder, or other code.
        """
        _check(self, path)


def home_of(path: Path, *, shared: bool) -> Home:
    """What the run of this process tells its workers about the store at `path`, which is `shared` or a cache of each machine."""
    return Home(uuid4().hex, socket.gethostname(), code_digest(), identity(path) if shared else "")


def identity(path: Path) -> str:
    """What tells this folder from every other one, made when it is first asked for."""
    file = path / IDENTITY
    if not file.exists():
        with disk_errors(path):
            (path / "locks").mkdir(parents=True, exist_ok=True)
            with FileLock(path / "locks" / f"{IDENTITY}.lock"):
                if not file.exists():  # else another run was faster, and has told its workers
                    write_file(file, uuid4().hex.encode())
    return file.read_text(encoding="utf-8")


@cache
def _check(home: Home, path: Path) -> None:
    here = f"process {os.getpid()} on {socket.gethostname()}"
    if home.identity and (not (path / IDENTITY).is_file() or identity(path) != home.identity):
        raise ResourceError(
            f"The worker ({here}) has no part in the store of the run: {path} is another folder than on {home.host}, expected one that "
            "all machines share. Put store.path on a shared disk, or give the machines an object store with store.remote=<url>, and start "
            "again."
        )
    if code_digest() != home.code:
        raise ResourceError(
            f"The worker ({here}) has another version of the project than the run on {home.host}, expected the same code on all machines: "
            "bring the checkouts to one commit, restart the workers, and start again."
        )
