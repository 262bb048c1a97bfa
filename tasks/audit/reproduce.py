"""A run once more, from its record alone: its commit, its versions, its parameters; and whether the digests are the same.

    git clone at the recorded commit -> an environment with the recorded versions -> the recorded flow into an empty store -> compare

Everything happens below a temporary folder. Files of the backbone and of the data that git does not have are taken from where the record
says, after their sha256 was compared. A run beside uncommitted changes cannot be made again from git, and is refused.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mgaa.errors import InputError, ResourceError
from tasks.audit.verify_run import verify_inputs
from tasks.cache import environment as provenance
from tasks.config.parameters import Placed
from tasks.record.run_record import SECTION, place_of

OWN = {
    **{"store.path": "store", "store.remote": None, "store.signing_key": None},
    **{"tracking.uri": "sqlite:///mlflow.db", "output.results": "results"},
}
"""Where the repetition keeps what it makes, below its own folder."""


@dataclass(frozen=True)
class Reproduction:
    """What came out of a repetition.

    Attributes:
        versions: packages whose version is another one than recorded: recorded and found.
        stages: of the artifacts, whether they are the same.
    """

    versions: dict[str, tuple[Any, Any]]
    stages: dict[str, bool]

    @property
    def same(self) -> bool:
        """Whether all are."""
        return all(self.stages.values())


def reproduce(p: Placed, record: Mapping[str, Any], folder: Path, python: Path | None = None) -> Reproduction:
    """Run a record again in `folder`, which is empty.

    Args:
        python: an interpreter with the packages; null: an environment is made, with the versions that the commit pins.

    Raises:
        InputError: the run cannot be made again from git, or a file that it read is another one now.
        ResourceError: the environment cannot be made, or the run fails.
    """
    if record["git"]["commit"] is None or record["git"]["dirty"]:
        raise InputError(
            f"The run was made beside uncommitted changes (commit {record['git']['commit']}), expected a clean checkout: its code is "
            "known by sha256 alone. Commit, run again, and reproduce that."
        )
    if wrong := [each for each in verify_inputs(p, record) if each.kind == "disagrees"]:
        raise InputError(
            f"{len(wrong)} inputs are not those of the run, expected the same bytes; the first: {wrong[0]}."
        )
    checkout = folder / "checkout"
    clone(provenance.ROOT, record["git"]["commit"], checkout)
    bring(p.folder, checkout, record)
    python = python or environment(folder / "environment", checkout)
    run(python, checkout, record)
    again = json.loads(place_of(checkout / "results", record["flow"]).read_bytes())
    return compare(record, again)


def clone(source: Path, commit: str, target: Path) -> None:
    """The recorded commit, from this repository."""
    command(["git", "clone", "--quiet", "--no-checkout", "--shared", str(source.absolute()), str(target)], source)
    command(["git", "-c", "advice.detachedHead=false", "checkout", "--quiet", commit], target)


def bring(source: Path, checkout: Path, record: Mapping[str, Any]) -> None:
    """Relative paths of the record that git does not have, as links to where they are."""
    given = record["parameters"]
    names = [given["backbone.source"], *(given.get(f"data.{part}.source") for part in record["sources"]["data"])]
    names += [each["source"] for each in given["data.questions"]]
    for name in dict.fromkeys(str(each) for each in names if each):
        inside = (checkout / name).resolve().is_relative_to(checkout.resolve())
        if inside and (source / name).exists() and not (checkout / name).exists():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).symlink_to((source / name).absolute())


def environment(folder: Path, checkout: Path) -> Path:
    """A virtual environment with what the commit pins; the interpreter in it."""
    python = folder / "bin" / "python"
    command([sys.executable, "-m", "venv", str(folder)], checkout)
    install = ["--disable-pip-version-check", "--quiet", "--constraint", "constraints.txt"]
    command([str(python), "-m", "pip", "install", *install, "--editable", ".[pipeline]"], checkout)
    return python


def run(python: Path, checkout: Path, record: Mapping[str, Any]) -> None:
    """The recorded flow with the recorded parameters, in the checkout."""
    given = {**record["parameters"], **OWN}
    parameters = yaml.safe_load((checkout / "params.yaml").read_text(encoding="utf-8"))
    overrides = [f"{key}={written(value)}" for key, value in given.items() if known(parameters, key, record["flow"])]
    command([str(python), "-m", f"flows.{record['flow']}", "--quiet", *overrides], checkout)


def known(parameters: Mapping[str, Any], key: str, flow: str) -> bool:
    """Whether the section of a key is one that can be overridden, and that the flow reads."""
    section = key.partition(".")[0]
    others = {"sweep", "study", "sensitivity", "profile", "runner"} - {SECTION.get(flow)}
    return section in parameters and section not in others


def written(value: Any) -> str:
    """A value as the command line takes it; a text in quotes, which it is under every commit."""
    return json.dumps(value, ensure_ascii=False)


def command(words: Sequence[str], folder: Path) -> None:
    """Run a program in a folder; what it says on failure is the message."""
    own = {"PYTHONPATH": str(folder), "PREFECT_HOME": str(folder / ".prefect")}
    done = subprocess.run(words, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [*done.stderr.strip().splitlines(), *done.stdout.strip().splitlines()] or ["no more is said"]
        called = " ".join([Path(words[0]).name, *words[1:6]])
        raise ResourceError(
            f"`{called} ...` ended with {done.returncode} ({said[-1]}), expected it to succeed: remove the reason, and start again."
        )


def compare(record: Mapping[str, Any], again: Mapping[str, Any]) -> Reproduction:
    """Digests and versions of two records."""
    names = dict.fromkeys([*record["versions"], *again["versions"]])
    versions = {name: (record["versions"].get(name), again["versions"].get(name)) for name in names}
    stages = {stage: made == again["artifacts"].get(stage) for stage, made in record["artifacts"].items()}
    return Reproduction({name: pair for name, pair in versions.items() if pair[0] != pair[1]}, stages)
