"""The store behind the store: any file system that fsspec knows (`s3://bucket/folder`, `file:///mnt/share`, `sftp://...`).

It is shared by all machines; the folder of a machine (tasks/cache/artifact.py) is its cache, with the same layout and names. An artifact
travels as its files, then its manifest, then the record of its key: whoever sees a record sees a finished result, and a push that was
killed leaves objects that nothing names. What is fetched is checked against its manifest before it gets its place. Steps wait for each
other on one machine only: two machines that compute the same step at once write the same content, and the last writer wins, harmlessly.

Where a protocol puts an object whole, it is put; elsewhere under another name, and renamed. Nothing is listed but the notes of workers.
Endpoints and credentials are fsspec's and the client's business (`FSSPEC_S3_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`...), not ours; or DVC's,
which then hands over an open file system (tasks/upkeep/sync.py).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

from mgaa.errors import MgaaError, ResourceError, UsageError
from tasks.cache.manifest import MANIFEST, DamagedError, check_folder, describe, read_manifest, refuse_escape

MARKER = "mgaa-store"
"""The object that is looked for, and left, before a run starts."""
WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"}
"""Protocols under which an object appears whole."""
PACKAGES = {"s3": "mgaa[s3]", "s3a": "mgaa[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
PACKAGES |= {"sftp": "paramiko", "ssh": "paramiko"}


@dataclass(frozen=True)
class Remote:
    """A store by its URL.

    Attributes:
        setting: what names it in the configuration.
        opened: its file system and the path on it, where they do not follow from the URL and the environment.
    """

    url: str
    setting: str = "store.remote"
    opened: tuple[Any, str] | None = field(default=None, compare=False)

    def place(self, name: str) -> str:
        """The URL of an object."""
        return f"{self.url.rstrip('/')}/{name}"

    def check(self) -> None:
        """Read and, the first time, write one object.

        Raises:
            UsageError: nothing here speaks the protocol.
            ResourceError: the store cannot be reached, read or written.
        """
        if self.read(MARKER) is None:
            self.write(MARKER, b"An artifact store of mgaa.\n")

    def read(self, name: str) -> bytes | None:
        """The content of an object, or None where there is none."""
        with self.reaching(name) as (system, path):
            try:
                content: bytes = system.cat_file(path)
            except FileNotFoundError:
                return None
            return content

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a small object, whole."""
        with self.reaching(name) as (system, path), self.whole(system, path) as draft:
            system.pipe_file(draft, content)

    def push(self, folder: Path, kind: str, digest: str) -> bool:
        """Copy a sealed artifact, unless its manifest says that all of it is there already; whether it was copied."""
        name = f"{kind}/{digest}"
        if self.read(f"{name}/{MANIFEST}") is not None:
            return False
        for file in (*read_manifest(folder)["files"], MANIFEST):  # the manifest last
            with self.reaching(f"{name}/{file}") as (system, path), self.whole(system, path) as draft:
                system.put_file(str(folder / file), draft)
        return True

    def fetch(self, folder: Path, kind: str, digest: str) -> None:
        """Copy an artifact into an empty folder, and check it there.

        Raises:
            DamagedError: it is not there, or not what its manifest says; then its manifest is removed, so that the next push replaces it.
        """
        name = f"{kind}/{digest}"
        manifest = self.read(f"{name}/{MANIFEST}")
        if manifest is None:
            raise DamagedError(f"{self.place(name)}/{MANIFEST} is missing: expected a sealed artifact.")
        try:
            (folder / MANIFEST).write_bytes(manifest)
            for file in read_manifest(folder)["files"]:
                refuse_escape(folder, file)
                self._fetch_file(f"{name}/{file}", folder / file)
            check_folder(folder, kind, digest)
        except DamagedError as damage:
            self._withdraw(f"{name}/{MANIFEST}")
            raise DamagedError(str(damage).replace(str(folder), self.place(name))) from damage

    def _fetch_file(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.reaching(name) as (system, path):
            try:
                system.get_file(path, str(target))
            except FileNotFoundError as error:
                raise DamagedError(f"{self.place(name)} is missing: its manifest names it.") from error
        describe(target)  # reads it, for a new file may have the inode of one that this process has read

    def _withdraw(self, name: str) -> None:
        with self.reaching(name) as (system, path):
            try:
                system.rm_file(path)
            except FileNotFoundError:  # another machine was faster
                return

    def take(self, folder: str, known: Iterable[str] = ()) -> dict[str, bytes]:
        """The objects of a folder by name, less those that are `known`."""
        with self.reaching(folder) as (system, path):
            system.invalidate_cache()
            try:
                names = [entry.rsplit("/", 1)[-1] for entry in system.ls(path, detail=False)]
            except FileNotFoundError:
                return {}
        found = {name: self.read(f"{folder}/{name}") for name in sorted({*names} - {*known, ""})}
        return {name: content for name, content in found.items() if content is not None}

    def drop(self, folder: str) -> None:
        """Remove a folder of small objects."""
        with self.reaching(folder) as (system, path):
            try:
                system.rm(path, recursive=True)
            except FileNotFoundError:
                return

    @contextmanager
    def whole(self, system: Any, path: str) -> Iterator[str]:
        """Where to write an object so that it appears at `path` at once."""
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
    def reaching(self, name: str) -> Iterator[tuple[Any, str]]:
        """The file system, and the path of an object on it; what goes wrong with it becomes one `ResourceError`."""
        try:
            system, root = self.opened or opened(self.url)
            yield system, f"{root.rstrip('/')}/{name}"
        except MgaaError:
            raise
        except Exception as error:  # each client has errors of its own
            reason = " ".join(str(error).split()) or "no more is said"
            raise ResourceError(
                f"{self.setting} cannot be used: {self.place(name)} ({type(error).__name__}: {reason}). Expected a store that can be "
                "read and written: check the URL, the network, the room, and the endpoint and credentials (docs/workers.md), and "
                "start again; finished steps are kept."
            ) from error


def remote_of(url: str | None) -> Remote | None:
    """The remote store of a URL, if there is one."""
    return None if url is None else Remote(url)


def opened(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, which fsspec keeps one of per process and set of options, and the path on it."""
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
