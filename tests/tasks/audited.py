"""A finished run that a test may break: a copy of the folder with its store, results, checkpoint and data, and the run in MLflow."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tasks.artifact import Artifact, Store
from tasks.findings import Finding
from tasks.parameters import Operation, load_operation
from tasks.tracking import tracked
from tests.finished import finished_run


@dataclass(frozen=True)
class Audited:
    """The folder, and what it holds."""

    p: Operation
    store: Store
    run: Artifact

    @property
    def folder(self) -> Path:
        """Everything lies below it."""
        return self.p.folder


def audited(folder: Path, *, track: bool = False) -> Audited:
    """Copy the finished run to `folder`; its record names the model and the texts where they were first."""
    run = finished_run()
    shutil.copytree(run.parameters.folder, folder)
    p = load_operation(folder / "params.yaml", [f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"])
    if track:
        from tasks.parameters import load

        parameters = load(folder / "params.yaml", [f"tracking.uri=sqlite:///{folder / 'mlflow.db'}"])
        with tracked(parameters) as record:
            record.log(run.results, run.published, run.record)
    return Audited(p, Store(p.store_path), run.record)


def flipped(path: Path, place: int) -> Callable[[], None]:
    """Flip the lowest bit of a byte of a file; returns what turns it back."""
    whole = path.read_bytes()
    place %= len(whole)
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    return lambda: path.write_bytes(whole) and None


def named(findings: list[Finding]) -> str:
    """What findings say, to look for a word in."""
    return "\n".join(map(str, findings))
