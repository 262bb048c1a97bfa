"""The remote store: any file system that fsspec supports (`s3://bucket/folder`, `file:///mnt/share`, `sftp://...`).

It is shared by all machines; the folder of a machine (tasks/cache/artifact.py) is its cache, with the same layout and names. An artifact
is copied as its files, then its manifest, then the record of its key: a visible record implies a complete result, and a push that was
killed leaves objects that nothing names. What is fetched is checked against its manifest before it is put in place. Steps wait for each
other on one machine only: two machines that compute the same step at once write the same content, and the last writer wins, harmlessly.

Objects are written directly if the protocol does so atomically, and otherwise under another name and renamed. Only the notes of workers are
ever listed. Endpoints and credentials are the business of fsspec and its client (`FSSPEC_S3_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`...), not
ours; or DVC's, which then hands over an open file system (tasks/upkeep/sync.py).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from mgaa.errors import MgaaError, ResourceError, UsageError
from tasks.cache.manifest import MANIFEST, DamagedError, check_folder, describe_file, read_manifest, refuse_escape

MARKER = "mgaa-store"
"""Object that is read, and if missing written, before a run starts."""
WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}
"""Protocols that write an object atomically."""
PACKAGES = {"s3": "mgaa[s3]", "s3a": "mgaa[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
PACKAGES |= {"sftp": "paramiko", "ssh": "paramiko"}


@dataclass(frozen=True)
class Remote:
    """A store by its URL.

    Attributes:
        setting: name of the setting that configures it.
        opened: its file system and the path on it, if they do not follow from the URL and the environment.
    """

    url: str
    setting: str = "store.remote"
    opened: tuple[Any, str] | None = field(default=None, compare=False)

    def url_of(self, name: str) -> str:
        """URL of an object."""
        return f"{self.url.rstrip('/')}/{name}"

    def check(self) -> None:
        """Read one object and, the first time, write it.

        Raises:
            UsageError: no installed package supports the protocol.
            ResourceError: the store cannot be reached, read or written.
        """
        if self.read(MARKER) is None:
            self.write(MARKER, b"An artifact store of mgaa.\n")

    def read(self, name: str) -> bytes | None:
        """Read an object; None if it does not exist."""
        with self.connect(name) as (system, path):
            try:
                content: bytes = system.cat_file(path)
            except FileNotFoundError:
                return None
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a small object, atomically."""
        with self.connect(name) as (system, path), self.atomic_write(system, path) as draft:
            system.pipe_file(draft, content)

    def push(self, folder: Path, kind: str, digest: str) -> bool:
        """Copy a sealed artifact, unless its manifest is there already, and with it all files; returns whether it was copied."""
        name = f"{kind}/{digest}"
        if self.read(f"{name}/{MANIFEST}") is not None:
            return False
        for file in (*read_manifest(folder)["files"], MANIFEST):  # the manifest last
            with self.connect(f"{name}/{file}") as (system, path), self.atomic_write(system, path) as draft:
                system.put_file(str(folder / file), draft)
        return True

    def fetch(self, folder: Path, kind: str, digest: str) -> None:
        """Copy an artifact into an empty folder, and check it there.

        Raises:
            DamagedError: it is missing, or not what its manifest says; then its manifest is removed, so that the next push replaces it.
        """
        name = f"{kind}/{digest}"
        manifest = self.read(f"{name}/{MANIFEST}")
        if manifest is None:
            raise DamagedError(f"{self.url_of(name)}/{MANIFEST} is missing: expected a sealed artifact.")
        try:
            (folder / MANIFEST).write_bytes(manifest)
            for file in read_manifest(folder)["files"]:
                refuse_escape(folder, file)
                self._fetch_file(f"{name}/{file}", folder / file)
            check_folder(folder, kind, digest)
        except DamagedError as damage:
            self._withdraw(f"{name}/{MANIFEST}")
            raise DamagedError(str(damage).replace(str(folder), self.url_of(name))) from damage

    def _fetch_file(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.connect(name) as (system, path):
            try:
                system.get_file(path, str(target))
            except FileNotFoundError as error:
                raise DamagedError(f"{self.url_of(name)} is missing: its manifest names it.") from error
        describe_file(target)  # hashes it anew, since a new file may have the inode of one that this process has read

    def _withdraw(self, name: str) -> None:
        with self.connect(name) as (system, path):
            try:
                system.rm_file(path)
            except FileNotFoundError:  # another machine was faster
                return

    def read_all(self, folder: str, known: Iterable[str] = ()) -> dict[str, bytes]:
        """Objects of a folder by name, without those that are `known`."""
        with self.connect(folder) as (system, path):
            system.invalidate_cache()
            try:
                names = [entry.rsplit("/", 1)[-1] for entry in system.ls(path, detail=False)]
            except FileNotFoundError:
                return {}
        objects = {name: self.read(f"{folder}/{name}") for name in sorted({*names} - {*known, ""})}
        return {name: content for name, content in objects.items() if content is not None}

    def remove_folder(self, folder: str) -> None:
        """Remove a folder of small objects."""
        with self.connect(folder) as (system, path):
            try:
                system.rm(path, recursive=True)
            except FileNotFoundError:
                return

    @contextmanager
    def atomic_write(self, system: Any, path: str) -> Iterator[str]:
        """Path to write to, so that an object appears at `path` all at once."""
        protocols = {system.protocol} if isinstance(system.protocol, str) else {*system.protocol}
        if protocols & WHOLE:
            yield path
            return
        draft = f"{path}.tmp-{token_hex(8)}"
        system.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        try:
            yield draft
            system.mv(draft, path)
        except BaseException:
            if system.exists(draft):
                system.rm_file(draft)
            raise

    @contextmanager
    def connect(self, name: str) -> Iterator[tuple[Any, str]]:
        """Open the file system and the path of an object on it; any error of it becomes one `ResourceError`."""
        try:
            system, root = self.opened or open_filesystem(self.url)
            yield system, f"{root.rstrip('/')}/{name}"
        except MgaaError:
            raise
        except Exception as error:  # each client has errors of its own
            reason = " ".join(str(error).split()) or "no details"
            raise ResourceError(
                f"{self.setting} cannot be used: {self.url_of(name)} ({type(error).__name__}: {reason}). Expected a store that can be "
                "read and written: check the URL, the network, the room, and the endpoint and credentials (docs/workers.md), and "
                "start again; finished steps are kept."
            ) from error


def remote_of(url: str | None) -> Remote | None:
    """Remote store of a URL, if there is one."""
    return None if url is None else Remote(url)


def open_filesystem(url: str) -> tuple[Any, str]:
    """Open fsspec's file system for a URL (one instance per process and set of options) and return it with the path on it."""
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        found: tuple[Any, str] = url_to_fs(url)
    except ImportError as error:
        raise UsageError(
            f"store.remote is {url!r}, but a package for {protocol} is missing ({error}): pip install '{PACKAGES.get(protocol, protocol)}'"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"store.remote is {url!r}: {error}; expected s3://, file://, sftp:// or another URL of fsspec"
        ) from error
    return found
