"""A finished run that a test may break: a copy of the folder with its store, results, checkpoint and data, and the run in MLflow."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import format_json, read_manifest
from tasks.config.parameters import Operation, load_operation
from tasks.record.findings import Finding
from tasks.record.run_record import RECORD
from tasks.tracking.run import track_run
from tests.support.finished import finished_run


@dataclass(frozen=True)
class Audited:
    """The copy and its contents."""

    p: Operation
    store: Store
    run: Artifact

    @property
    def folder(self) -> Path:
        """Folder of the whole copy."""
        return self.p.folder


def audited(folder: Path, *, track: bool = False, model: str | None = None) -> Audited:
    """Copy the finished run to `folder`; its record names the original locations of the model and the texts.

    Args:
        track: whether it is in MLflow.
        model: the registered model that it is a version of, if any.
    """
    run = finished_run()
    shutil.copytree(run.parameters.folder, folder)
    lab = Audited(load_operation(folder / "params.yaml", []), Store(folder / "store"), run.record)
    if model is not None:
        told = json.loads((lab.p.results / RECORD).read_bytes())["parameters"]
        lab = Audited(lab.p, lab.store, rewrite(lab, parameters={**told, "registry.model": model}))
    if track:
        parameters = run.parameters.model_copy(
            update={"registry": run.parameters.registry.model_copy(update={"model": model})}
        )
        parameters._folder = folder
        with track_run(parameters) as record:
            record.log(run.results, run.published, lab.run)
    return lab


def rewrite(lab: Audited, **changes: Any) -> Artifact:
    """Publish and seal the record of the run with some fields changed, as if it had been made that way."""
    content = format_json(json.loads((lab.p.results / RECORD).read_bytes()) | changes)
    manifest = read_manifest(lab.store.path_of(lab.run))
    with lab.store.draft_folder("run") as out:
        (out / RECORD).write_bytes(content)
        told = {key: value for key, value in manifest.items() if key not in ("kind", "digest", "files")}
        run = lab.store.seal(out, "run", told)
    (lab.p.results / RECORD).write_bytes(content)
    return run


def flipped(path: Path, place: int) -> Callable[[], None]:
    """Flip the lowest bit of a byte of a file; returns a function that restores it."""
    whole = path.read_bytes()
    place %= len(whole)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    return lambda: path.write_bytes(whole) and None


def named(findings: list[Finding]) -> str:
    """Text of all findings, to search for a word."""
    return "\n".join(map(str, findings))
