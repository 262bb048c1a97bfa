"""Reproduce a run from its record alone (commit, versions, parameters), and compare the digests.

    git clone at the recorded commit -> an environment with the recorded versions -> the recorded flow into an empty store -> compare

Everything happens below a temporary folder. Files of the backbone and the data that git does not have are taken from the recorded
location, after their sha256 was compared. A run with uncommitted changes cannot be reproduced from git, and is refused.
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
from tasks.config.parameters import PathSections
from tasks.record.run_record import SECTION, place_of

OWN = {
    **{"store.path": "store", "store.remote": None, "store.signing_key": None},
    **{"tracking.uri": "sqlite:///mlflow.db", "output.results": "results"},
}
"""Parameters that keep everything the repetition writes below its own folder."""


@dataclass(frozen=True)
class Reproduction:
    """Outcome of a repetition.

    Attributes:
        versions: packages whose version differs: the recorded one and the present one.
        stages: whether the artifacts of a stage are identical.
    """

    versions: dict[str, tuple[Any, Any]]
    stages: dict[str, bool]

    @property
    def is_same(self) -> bool:
        """Tell whether all artifacts are identical."""
        return all(self.stages.values())


def reproduce(
    params: PathSections, record: Mapping[str, Any], folder: Path, python: Path | None = None
) -> Reproduction:
    """Run a record again in `folder`, which is empty.

    Args:
        python: an interpreter with the packages; if None, an environment is created with the versions that the commit pins.

    Raises:
        InputError: the run cannot be reproduced from git, or a file that it read has changed.
        ResourceError: the environment cannot be created, or the run fails.
    """
    if record["git"]["commit"] is None or record["git"]["dirty"]:
        raise InputError(
            f"The run was made with uncommitted changes (commit {record['git']['commit']}), expected a clean checkout: its code is "
            "known by sha256 alone. Commit, run again, and reproduce that."
        )
    if wrong := [each for each in verify_inputs(params, record) if each.kind == "disagrees"]:
        raise InputError(
            f"{len(wrong)} inputs are not those of the run, expected the same bytes; the first: {wrong[0]}."
        )
    checkout = folder / "checkout"
    clone_commit(provenance.ROOT, record["git"]["commit"], checkout)
    link_inputs(params.folder, checkout, record)
    python = python or create_environment(folder / "environment", checkout)
    run_flow(python, checkout, record)
    again = json.loads(place_of(checkout / "results", record["flow"]).read_bytes())
    return compare_records(record, again)


def clone_commit(source: Path, commit: str, target: Path) -> None:
    """Check out the recorded commit, cloned from this repository."""
    run_command(["git", "clone", "--quiet", "--no-checkout", "--shared", str(source.absolute()), str(target)], source)
    run_command(["git", "-c", "advice.detachedHead=false", "checkout", "--quiet", commit], target)


def link_inputs(source: Path, checkout: Path, record: Mapping[str, Any]) -> None:
    """Link the inputs that the record names by relative paths and that git does not have."""
    given = record["parameters"]
    names = [given["backbone.source"], *(given.get(f"data.{part}.source") for part in record["sources"]["data"])]
    names += [each["source"] for each in given["data.questions"]]
    for name in dict.fromkeys(str(each) for each in names if each):
        inside = (checkout / name).resolve().is_relative_to(checkout.resolve())
        if inside and (source / name).exists() and not (checkout / name).exists():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).symlink_to((source / name).absolute())


def create_environment(folder: Path, checkout: Path) -> Path:
    """Create a virtual environment with what the commit pins; returns its interpreter."""
    python = folder / "bin" / "python"
    run_command([sys.executable, "-m", "venv", str(folder)], checkout)
    install = ["--disable-pip-version-check", "--quiet", "--constraint", "constraints.txt"]
    run_command([str(python), "-m", "pip", "install", *install, "--editable", ".[pipeline]"], checkout)
    return python


def run_flow(python: Path, checkout: Path, record: Mapping[str, Any]) -> None:
    """Run the recorded flow with the recorded parameters, in the checkout."""
    given = {**record["parameters"], **OWN}
    parameters = yaml.safe_load((checkout / "params.yaml").read_text(encoding="utf-8"))
    overrides = [
        f"{key}={format_value(value)}" for key, value in given.items() if is_known(parameters, key, record["flow"])
    ]
    run_command([str(python), "-m", f"flows.{record['flow']}", "--quiet", *overrides], checkout)


def is_known(parameters: Mapping[str, Any], key: str, flow: str) -> bool:
    """Tell whether the section of a key can be overridden and is read by the flow."""
    section = key.partition(".")[0]
    others = {"sweep", "study", "sensitivity", "profile", "runner"} - {SECTION.get(flow)}
    return section in parameters and section not in others


def format_value(value: Any) -> str:
    """Format a value for the command line; text is quoted, which every commit reads as text."""
    return json.dumps(value, ensure_ascii=False)


def run_command(words: Sequence[str], folder: Path) -> None:
    """Run a program in a folder; on failure, the error quotes its last line."""
    own = {"PYTHONPATH": str(folder), "PREFECT_HOME": str(folder / ".prefect")}
    done = subprocess.run(words, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    if done.returncode:
        output = [*done.stderr.strip().splitlines(), *done.stdout.strip().splitlines()] or ["no output"]
        called = " ".join([Path(words[0]).name, *words[1:6]])
        raise ResourceError(
            f"`{called} ...` ended with {done.returncode} ({output[-1]}), expected it to succeed: remove the cause, and start again."
        )


def compare_records(record: Mapping[str, Any], again: Mapping[str, Any]) -> Reproduction:
    """Compare the digests and versions of two records."""
    names = dict.fromkeys([*record["versions"], *again["versions"]])
    versions = {name: (record["versions"].get(name), again["versions"].get(name)) for name in names}
    stages = {stage: made == again["artifacts"].get(stage) for stage, made in record["artifacts"].items()}
    return Reproduction({name: pair for name, pair in versions.items() if pair[0] != pair[1]}, stages)
