"""Folder of one recovery, from which it resumes after any interruption, and which no other recovery may use.

    job.json               the job: digests of the model, the examples and the validation examples, and the plan
    checkpoint-<step>/     after each validation; the two newest and the best are kept
        adapters.safetensors       the tensors learnt so far
        optimizer.pt, scheduler.pt, scaler.pt, rng_state.pth       written and read by transformers' Trainer
        trainer_state.json         steps, losses and the best validation so far
        complete.json              sha256 of all of these, written last
    job.lock               held while a process trains here
    adapters.safetensors, curve.json     the result, written when training has ended; the checkpoints are removed then

A checkpoint without a valid `complete.json` was being written when the process died. It is dropped with a warning, and the previous one is
used. Files with a `.pt` ending are archives of torch: the Trainer reads them by `torch.load(weights_only=True)`, which builds tensors and
plain values and runs no code. `training_args.bin`, a pickle that the Trainer would write (and never read), is not written.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgaa.checkpoints.ownership import LITTER
from mgaa.errors import InputError, LockedError, ResourceError
from mgaa.recovery.curve import Curve
from mgaa.recovery.examples import Examples
from mgaa.recovery.plan import Plan

JOB, LOCK, CURVE, ADAPTERS = "job.json", "job.lock", "curve.json", "adapters.safetensors"
STATE, COMPLETE = "trainer_state.json", "complete.json"


@dataclass(frozen=True)
class Job:
    """A recovery, identified by content, in a folder; made by `mgaa.recovery.recover_`."""

    folder: Path
    model: str
    examples: str
    validation: str
    plan: Plan

    def claim(self) -> None:
        """Claim the folder: write job.json, or check that the existing one agrees.

        Raises:
            InputError: the folder belongs to another recovery, or holds something else.
            ResourceError: it cannot be written.
        """
        if not (self.folder / JOB).exists():
            if strangers := sorted(self._strangers()):
                raise InputError(f"{self.folder} holds {strangers[0]} but no {JOB}: give a new folder")
            write_json(self.folder / JOB, self._content())
        elif differing := self._differences(read_json(self.folder / JOB)):
            raise InputError(
                f"{self.folder} belongs to another recovery, which differs in {'; '.join(differing)}: "
                "give a new folder, or the same model, examples and plan to resume"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the exclusive right to train in the folder.

        Raises:
            LockedError: another process trains there.
        """
        lock = FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise LockedError(
                f"another process trains in {self.folder}: wait for it, stop it, or give another folder"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def checkpoint(self) -> Path | None:
        """Return the newest complete checkpoint; incomplete ones are removed with a warning."""
        for path in sorted(self._checkpoints(), key=_step, reverse=True):
            if is_complete(path):
                return path
            warnings.warn(f"{path} is incomplete or damaged and was dropped", UserWarning, stacklevel=2)
            shutil.rmtree(path)
        return None

    def at(self, step: int) -> Path:
        """Return the path of the checkpoint of a step."""
        return self.folder / f"checkpoint-{step}"

    def finish(self, curve: Curve) -> None:
        """Write the result, `curve.json` last, then remove the checkpoints.

        Raises:
            InputError: the best checkpoint was damaged in the meantime.
        """
        if curve.best and not is_complete(self.at(curve.best)):
            raise InputError(
                f"{self.at(curve.best)}, the best checkpoint, is damaged: remove {self.folder} and start again, which trains from the start"
            )
        learnt = read_tensors(self.at(curve.best) / ADAPTERS) if curve.best else {}
        write_tensors(self.folder / ADAPTERS, learnt)
        write_json(self.folder / CURVE, curve.to_dict() | {"adapters": file_digest(self.folder / ADAPTERS)})
        for path in self._checkpoints():
            shutil.rmtree(path)

    def result(self) -> tuple[Curve, dict[str, Tensor]] | None:
        """Return the curve and the best adapters (empty if no update was better), or None before the end.

        Raises:
            InputError: the files do not belong together.
        """
        if not (self.folder / CURVE).exists():
            return None
        content = read_json(self.folder / CURVE)
        path = self.folder / ADAPTERS
        if not path.exists() or content.pop("adapters", None) != file_digest(path):
            raise InputError(
                f"{path} is not the file that {CURVE} next to it names: remove {self.folder} and start again, which trains from the start"
            )
        return Curve.from_dict(content), read_tensors(path)

    def _checkpoints(self) -> list[Path]:
        """List the checkpoints of steps; a folder of another name belongs to somebody else."""
        return [path for path in self.folder.glob("checkpoint-*") if _step(path) >= 0 and not path.is_symlink()]

    def _strangers(self) -> set[str]:
        """Return the files in an unclaimed folder, apart from an interrupted claim."""
        there = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
        return {name for name in there - LITTER - {LOCK} if not re.fullmatch(rf"{JOB}\.\d+\.part", name)}

    def _content(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "folder"}

    def _differences(self, there: dict[str, Any]) -> list[str]:
        try:
            plan = Plan(**there["plan"])
            digests = {key: there[key] for key in ("model", "examples", "validation")}
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{self.folder / JOB} is not a job of this mgaa ({error}): remove {self.folder} and start again"
            ) from error
        return [f"the {key}" for key in digests if digests[key] != getattr(self, key)] + self.plan.differences(plan)


def read_job(folder: Path) -> Job:
    """Read the job that `Job.claim` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    content = read_json(folder / JOB)
    return Job(folder, content["model"], content["examples"], content["validation"], Plan(**content["plan"]))


def job_of(model: nn.Module, examples: Examples, validation: Examples, plan: Plan, folder: Path) -> Job:
    """Make the job of these inputs."""
    return Job(folder.resolve(), model_digest(model), examples.digest, validation.digest, plan)


def model_digest(model: nn.Module) -> str:
    """Return the identity of a model: sha256 over the names, types, shapes and bytes of its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as complete, once all its files are written."""
    files = {path.name: file_digest(path) for path in sorted(checkpoint.iterdir()) if path.name != COMPLETE}
    write_json(checkpoint / COMPLETE, files)


def is_complete(checkpoint: Path) -> bool:
    """Return whether every file exists as it was written."""
    try:
        files = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        return all(file_digest(checkpoint / name) == digest for name, digest in files.items())
    except (OSError, ValueError):
        return False


def file_digest(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically.

    Raises:
        ResourceError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ResourceError(f"{path} cannot be written ({error}): make room or give another folder") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a JSON file.

    Raises:
        InputError: the file is missing, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): remove {path.parent} and start again") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}, expected an object: remove {path.parent} and start again"
        )
    return content


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically.

    Raises:
        ResourceError: it cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), part)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink()
        raise ResourceError(f"{path} cannot be written ({error}): make room or give another folder") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file."""
    return load_file(path)


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
