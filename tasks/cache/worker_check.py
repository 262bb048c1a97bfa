"""Check of a worker process against the run that it computes for: one that cannot serve the run says so instead of computing elsewhere.

A worker on another machine may see another folder under the name of the store, or hold another version of the project. Either would give
results that the run never finds: the first are in a store that nobody reads, the second under other keys. So the store that is sent to a
worker carries the identity that is stored in it and the digest of the code, and the worker compares both before its first step.
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
"""File with the identity of a store."""


@dataclass(frozen=True)
class RunIdentity:
    """Identity of a run, for its workers.

    Attributes:
        run: name of the run, under which workers record their executions (tasks/cache/executions.py).
        host: machine of the flow.
        code: digest of all code.
        identity: of the store's folder; empty if each machine has a folder of its own as a cache of `store.remote`.
    """

    run: str
    host: str
    code: str
    identity: str

    def check(self, path: Path) -> None:
        """Compare with what this process sees as the store at `path`; checked once per process.

        Raises:
            ResourceError: the folder or the code differs.
        """
        _check(self, path)


def identify_run(path: Path, *, shared: bool) -> RunIdentity:
    """Identity of the run of this process for its workers; the store at `path` is `shared`, or else a cache of each machine."""
    return RunIdentity(uuid4().hex, socket.gethostname(), code_digest(), store_identity(path) if shared else "")


def store_identity(path: Path) -> str:
    """Unique identity of this folder, created on first use."""
    file = path / IDENTITY
    if not file.exists():
        with disk_errors(path):
            (path / "locks").mkdir(parents=True, exist_ok=True)
            with FileLock(path / "locks" / f"{IDENTITY}.lock"):
                if not file.exists():  # otherwise another run was faster, and its workers use that identity
                    write_file(file, uuid4().hex.encode())
    return file.read_text(encoding="utf-8")


@cache
def _check(home: RunIdentity, path: Path) -> None:
    here = f"process {os.getpid()} on {socket.gethostname()}"
    if home.identity and (not (path / IDENTITY).is_file() or store_identity(path) != home.identity):
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
