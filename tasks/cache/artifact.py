"""The artifact store: results addressed by content, sealed, checked whenever they are used.

An artifact is a folder of files named by its content: `store/<kind>/<digest>/` (content alone: no times, no device). So equal results
are one folder, wherever they were computed, and a result that did not change stops the recomputation of everything that depends on it.
`manifest.json` next to the files records where they come from (tasks/cache/manifest.py).

`store/keys/<cache key>.json` maps everything that a step depends on (tasks/cache/stage.py) to the resulting artifact. The record holds the
plain `{kind, digest}`, the whole stage whose sha256 is the key, and the two fields that Prefect needs to read it as a task's result.

With a `remote` (tasks/cache/remote.py) the folder is this machine's cache: what is missing here is fetched, what was made here is pushed.
"""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tasks.cache.atomic import (
    disk_errors,
    flush,
    flush_folder,
    remove_stale_drafts,
    replace_folder,
    temporary_folder,
    write_file,
)
from tasks.cache.manifest import (
    MANIFEST,
    DamagedError,
    check_folder,
    content_digest,
    describe_file,
    digest,
    format_json,
    refuse_escape,
    regular_files,
)
from tasks.cache.remote import Remote
from tasks.cache.worker_check import RunIdentity

__all__ = ["MANIFEST", "Artifact", "DamagedError", "Store"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """Value that tasks exchange: a kind (the noun of its stage) and a sha256."""

    kind: str
    digest: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z_]*", self.kind) or not re.fullmatch(r"[0-9a-f]{64}", self.digest):
            raise DamagedError(
                f"{self.kind!r}, {self.digest!r} is no artifact: expected a lower-case kind and a sha256."
            )

    def __str__(self) -> str:
        return f"{self.kind}/{self.digest[:12]}"


published: "set[tuple[Remote, str]]" = set()
"""Keys that this process has found in a remote or put there."""

CLASSES = (f"{Artifact.__module__}.Artifact", "tasks.artifact.Artifact")
"""Names of the class in the records of keys: the one that is written, and the one that the previous version wrote."""


def artifact_of_key(content: bytes, key: str, place: str) -> Artifact:
    """Artifact that the record of a key at `place` names; raises `DamagedError`."""
    try:
        record = json.loads(content)
        artifact = Artifact(record["kind"], record["digest"])
        sound = digest(record["stage"]) == key and json.loads(record["result"])["data"]["digest"] == artifact.digest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"The key record {place} is not readable ({error!r}).") from error
    if not sound:
        raise DamagedError(f"The key record {place} does not describe the stage it is named after.")
    return artifact


@dataclass(frozen=True)
class Store:
    """A folder of artifacts and keys.

    Attributes:
        lock_timeout: seconds that a step waits for another run that computes the same.
        remote: store shared by all machines, of which this one is a cache.
        home: identity of the run, which its worker processes check.
    """

    path: Path
    lock_timeout: float = 3600.0
    remote: Remote | None = None
    home: RunIdentity | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.path.absolute())

    def path_of(self, artifact: Artifact) -> Path:
        """Path of the artifact, whether or not it exists (nothing is checked)."""
        return self.path / artifact.kind / artifact.digest

    def folder(self, artifact: Artifact) -> Path:
        """Folder of the artifact, checked; raises `DamagedError`."""
        self.manifest(artifact)
        return self.path_of(artifact)

    def manifest(self, artifact: Artifact) -> dict[str, Any]:
        """Manifest of the artifact, after the files were checked against it; raises `DamagedError`."""
        try:
            return self.verify(artifact)
        except DamagedError as damage:
            raise DamagedError(
                f"{damage} Start again: it is quarantined and the step that made it runs again."
            ) from damage

    def verify(self, artifact: Artifact) -> dict[str, Any]:
        """Like `manifest`, but the error has no remedy, for callers that repair the damage. An artifact that only the remote has is
        fetched.
        """
        if self.remote is not None and not self.path_of(artifact).exists():
            with self.draft_folder(artifact.kind) as folder:
                self.remote.fetch(folder, artifact.kind, artifact.digest)
                flush(folder)
                self.install(folder, artifact)
        return check_folder(self.path_of(artifact), artifact.kind, artifact.digest)

    @contextmanager
    def draft_folder(self, kind: str) -> Iterator[Path]:
        """Create a temporary folder to fill and `seal`; it is removed if the block fails, and a full disk becomes a `ResourceError`."""
        with temporary_folder(self.path / kind) as folder:
            yield folder

    def seal(self, folder: Path, kind: str, record: Mapping[str, Any]) -> Artifact:
        """Turn a filled folder of `draft_folder` into an artifact; `record` becomes part of its manifest. Equal content is stored once."""
        files = {name: describe_file(folder / name) for name in sorted(regular_files(folder))}
        if not files:
            raise RuntimeError(
                f"The step that makes {kind!r} wrote no file: expected its result in the folder it was given."
            )
        artifact = Artifact(kind, content_digest(kind, {name: file["sha256"] for name, file in files.items()}))
        manifest = {"kind": kind, "digest": artifact.digest, **record, "files": files}
        (folder / MANIFEST).write_bytes(format_json({**manifest, "seal": digest(manifest)}))
        for name in files:  # safetensors writes files that only their owner may read, and a store may be shared
            (folder / name).chmod((folder / MANIFEST).stat().st_mode)
        flush(folder)
        self.install(folder, artifact)
        return artifact

    def install(self, folder: Path, artifact: Artifact) -> None:
        """Rename a complete folder into its place; a sound one that exists already is kept, a damaged one is quarantined."""
        target = self.path_of(artifact)
        while True:
            try:
                os.rename(folder, target)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
            else:
                flush_folder(target.parent)
                return
            try:
                self.verify(artifact)
            except DamagedError as damage:
                self.quarantine(artifact, damage)
            else:
                shutil.rmtree(folder)
                return

    def quarantine(self, artifact: Artifact, damage: DamagedError) -> None:
        """Move a damaged artifact away, and log what was wrong with it."""
        shelf = self.path / "quarantine"
        with disk_errors(self.path):
            shelf.mkdir(parents=True, exist_ok=True)
            for number in count(1):
                target = shelf / f"{artifact.kind}-{artifact.digest}-{number}"
                if not target.exists():
                    break
            try:
                os.rename(self.path_of(artifact), target)
            except FileNotFoundError:  # another run was faster
                return
        logger.warning("%s Moved to %s; it is rebuilt now.", damage, target)

    def key_path(self, key: str) -> Path:
        """Path of the record of a cache key."""
        return self.path / "keys" / f"{key}.json"

    def recall(self, key: str) -> Artifact | None:
        """Checked artifact of a cache key, from this machine or the remote, or None; raises `DamagedError`."""
        path, name = self.key_path(key), f"keys/{key}.json"
        content, place = self._record(path), str(path)
        here = content is not None
        if content is None and self.remote is not None:
            content, place = self.remote.read(name), self.remote.url_of(name)
        if content is None:
            return None
        artifact = artifact_of_key(content, key, place)
        self.verify(artifact)
        if here:
            self.publish(key, artifact)
        else:
            write_file(path, content)
        return artifact

    def _record(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None

    def publish(self, key: str, artifact: Artifact, *, fresh: bool = False) -> None:
        """Push an artifact and then the record of its key, unless the remote has them; a `fresh` record replaces the one there."""
        if self.remote is None or ((self.remote, key) in published and not fresh):
            return
        self.remote.push(self.path_of(artifact), artifact.kind, artifact.digest)
        if fresh or self.remote.read(f"keys/{key}.json") is None:
            self.remote.write(f"keys/{key}.json", self.key_path(key).read_bytes())
        published.add((self.remote, key))

    def remember(self, key: str, artifact: Artifact, stage: Mapping[str, Any]) -> None:
        """Record that the stage of this key gave this artifact."""
        write_file(self.key_path(key), self.record(artifact, stage))
        self.publish(key, artifact, fresh=True)

    @staticmethod
    def record(artifact: Artifact, stage: Mapping[str, Any], name: str = CLASSES[0]) -> bytes:
        """Serialize the record of a cache key, in a form that Prefect reads as a task's result; `name` is one of `CLASSES`."""
        named = {"kind": artifact.kind, "digest": artifact.digest}
        prefect = {
            "metadata": {"serializer": {"type": "json"}},
            "result": json.dumps({"__class__": name, "data": named}),
        }
        return format_json({**named, "stage": stage, **prefect})

    def forget(self, key: str, damage: DamagedError) -> None:
        """Drop a key whose artifact cannot be used, and quarantine what is left of it, so that the step runs again."""
        path = self.key_path(key)
        try:
            record = json.loads(path.read_bytes())
            artifact = Artifact(record["kind"], record["digest"])
        except (OSError, ValueError, KeyError, TypeError, DamagedError, RecursionError):
            logger.warning("%s The record is dropped and its step runs again.", damage)
        else:
            if self.path_of(artifact).exists() and not self.is_sound(artifact):
                self.quarantine(artifact, damage)
            else:
                logger.warning("%s The record is dropped and its step runs again.", damage)
        with disk_errors(self.path):
            path.unlink(missing_ok=True)

    def is_sound(self, artifact: Artifact) -> bool:
        """Tell whether the artifact exists and passes every check."""
        try:
            self.verify(artifact)
        except DamagedError:
            return False
        return True

    def remove_leftovers(self) -> None:
        """Remove the drafts of killed runs of this machine."""
        for folder in self.path.iterdir() if self.path.is_dir() else ():
            remove_stale_drafts(folder)

    def export(self, artifact: Artifact, target: Path, extra: Mapping[str, bytes] | None = None) -> None:
        """Copy an artifact with its manifest, and `extra` files by name, to `target`, which is replaced atomically."""
        with replace_folder(target) as folder:
            self.copy(artifact, folder)
            for name, content in (extra or {}).items():
                refuse_escape(folder, name)
                (folder / name).write_bytes(content)

    def copy(self, artifact: Artifact, folder: Path) -> None:
        """Copy the files of an artifact with its manifest into a draft."""
        source, files = self.path_of(artifact), self.manifest(artifact)["files"]
        for name in (*files, MANIFEST):  # contents alone: a copy must not inherit the modes of a read-only store
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)
