"""Pins: artifacts that a person wants to keep, whether or not anything needs them. One file each, `store/pins/<kind>-<digest>.json`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from mgaa.errors import InputError
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import disk_errors, write_file
from tasks.cache.manifest import DamagedError, format_json

FOLDER = "pins"


@dataclass(frozen=True)
class Pin:
    """An artifact that is kept with all its ancestors, and the reason."""

    artifact: Artifact
    why: str


def pin(store: Store, artifact: Artifact, why: str) -> None:
    """Pin an artifact of the store; pinning it again replaces the reason."""
    store.folder(artifact)
    content = format_json({"kind": artifact.kind, "digest": artifact.digest, "why": why})
    write_file(store.path / FOLDER / f"{artifact.kind}-{artifact.digest}.json", content)


def unpin(store: Store, artifact: Artifact) -> None:
    """Remove the pin of an artifact; raises `InputError` if it has none."""
    try:
        with disk_errors(store.path):
            (store.path / FOLDER / f"{artifact.kind}-{artifact.digest}.json").unlink()
    except FileNotFoundError as error:
        raise InputError(f"{artifact} is not pinned: `python -m flows.store list` marks those that are.") from error


def pins(store: Store) -> Iterator[Pin]:
    """List all pins."""
    for path in sorted((store.path / FOLDER).glob("*.json")):
        try:
            content = json.loads(path.read_bytes())
            yield Pin(Artifact(content["kind"], content["digest"]), str(content["why"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DamagedError(
                f"The pin {path} is not readable ({error!r}): remove the file, and pin again."
            ) from error
