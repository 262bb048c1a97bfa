"""Whether a run of `flows.compress` would change nothing, told in seconds and without loading a model.

All that its results depend on (backbone, data, parameters, code, versions) must be that of an earlier run, and what that run published
must be where it left it: the record is compared byte by byte, small files by their content, and the weights of the checkpoint
by the manifest beside them and by their size, for to read them may take minutes.
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
"""Bytes up to which a published file is read in any case."""


def unchanged(p: Parameters) -> dict[str, Any] | None:
    """The record of the earlier run that a run with these parameters would repeat, else None."""
    store = Store(p.store_path, p.store.lock_timeout, remote_of(p.store.remote))
    try:
        if (earlier := last_run(store, p, "compress")) is None:
            return None
        record, content = read_record(store, earlier), (store.folder(earlier) / RECORD).read_bytes()
    except DamagedError:  # the run says so, and repairs it
        return None
    return record if in_place(p, record, content) else None


def in_place(p: Parameters, record: Mapping[str, Any], content: bytes) -> bool:
    """Whether `record`, whose bytes are `content`, and all that its run published is where it was left."""
    try:
        if (p.results / RECORD).read_bytes() != content:
            return False
        return all(same(p.folder / path, expected) for path, expected in record["published"].items())
    except (OSError, KeyError, DamagedError):  # not there, or not what a run has written
        return False


def same(path: Path, expected: str) -> bool:
    """Whether a file has this sha256; a large one that a manifest beside it lists may be taken at its word."""
    found = path.stat()
    if found.st_size > SMALL and (path.parent / MANIFEST).is_file():
        told = read_manifest(path.parent)["files"].get(path.name)
        if told is not None:
            return bool(told["size"] == found.st_size and told["sha256"] == expected)
    return file_digest(path, found) == expected
