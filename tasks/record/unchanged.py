"""Detection of a run of `flows.compress` that would change nothing, in seconds and without loading a model.

Everything that its results depend on (backbone, data, parameters, code, versions) must equal that of an earlier run, and what that run
published must be in place: the record is compared byte by byte, small files by their content, and the weights of the checkpoint
by size and by the manifest next to them, since reading them may take minutes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.cache.artifact import Store
from tasks.cache.manifest import MANIFEST, RECORD, DamagedError, file_digest, read_manifest
from tasks.cache.remote import remote_of
from tasks.config.parameters import Parameters
from tasks.record.run_record import last_run, read_record

SMALL = 1_000_000
"""Bytes up to which a published file is always read."""


def find_unchanged_run(params: Parameters) -> dict[str, Any] | None:
    """Find the record of the earlier run that a run with these parameters would repeat, if there is one."""
    store = Store(params.store_path, params.store.lock_timeout, remote_of(params.store.remote))
    try:
        if (earlier := last_run(store, params, "compress")) is None:
            return None
        record, content = read_record(store, earlier), (store.folder(earlier) / RECORD).read_bytes()
    except DamagedError:  # the run reports and repairs it
        return None
    return record if is_in_place(params, record, content) else None


def is_in_place(params: Parameters, record: Mapping[str, Any], content: bytes) -> bool:
    """Tell whether `record`, whose bytes are `content`, and everything that its run published are still in place."""
    try:
        if (params.results / RECORD).read_bytes() != content:
            return False
        return all(has_digest(params.folder / path, expected) for path, expected in record["published"].items())
    except (OSError, KeyError, DamagedError):  # missing, or not written by a run
        return False


def has_digest(path: Path, expected: str) -> bool:
    """Tell whether a file has this sha256; a large one is not read if a manifest next to it lists its size and digest."""
    status = path.stat()
    if status.st_size > SMALL and (path.parent / MANIFEST).is_file():
        entry = read_manifest(path.parent)["files"].get(path.name)
        if entry is not None:
            return bool(entry["size"] == status.st_size and entry["sha256"] == expected)
    return file_digest(path, status) == expected
