"""A run's record against everything it names that lies outside the store.

What it published, the files of the backbone and of the data that it read, `dvc.lock`, the code at its git commit, and its run in MLflow.
Each is a list of findings; what is not on this machine is told as not looked at.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mgaa.errors import MgaaError
from tasks import provenance
from tasks.artifact import Artifact
from tasks.findings import Finding, differing, disagrees, unchecked
from tasks.lineage import Node
from tasks.parameters import Placed
from tasks.run_record import RECORD, digest_of, md5
from tasks.sealing import file_digest

MADE = ("demo", "scenes")
"""Sources that the project makes itself: their record has versions in the place of files."""
CHANGING = ("output", "runner", "store", "tracking")
"""Sections that `dvc.lock` may hold and that change no result."""


def verify_published(p: Placed, run: Artifact, record: Mapping[str, Any]) -> Iterator[Finding]:
    """The results and the checkpoint of the run that is published last; an older run has none."""
    path = p.results / RECORD
    if not path.is_file() or (digest_of(path.read_bytes()) != run and json_of(path).get("end", "") > record["end"]):
        yield unchecked(path, f"is not of {run}: its results are no longer published")
        return
    if digest_of(path.read_bytes()) != run:
        yield disagrees(path, f"was altered: it is not the record of {run}")
    yield from files(p.folder, record["published"], "the record of the run")


def verify_inputs(p: Placed, record: Mapping[str, Any]) -> Iterator[Finding]:
    """The files of the backbone, of the data, and those that parameters name."""
    given, sources = record["parameters"], record["sources"]
    backbone = Path(given["backbone.source"]).expanduser()
    yield from files_below(p.folder, backbone, sources["backbone"])
    for section, content in sources["data"].items():
        name = given.get(f"data.{section}.source") or source_of(given["data.questions"], section)
        if name not in MADE:
            yield from files_below(p.folder, Path(name).expanduser().parent, content, name)
    for key, content in sources["parameters"].items():
        yield from files_below(p.folder, Path(given[key]).expanduser().parent, content)


def source_of(questions: list[Mapping[str, Any]], section: str) -> str:
    """The source of a set of questions."""
    return next(str(each["source"]) for each in questions if section == f"questions.{each['name']}")


def files_below(folder: Path, source: Path, content: Mapping[str, str], name: str = "") -> Iterator[Finding]:
    """Files of a source, which is found from the folder of `params.yaml` or not on this machine."""
    place = folder / source
    if content and not place.is_dir():
        yield unchecked(name or source, "is not on this machine (an id of the Hub has its commit in the record)")
        return
    yield from files(place, content, "the record of the run")


def files(folder: Path, content: Mapping[str, str], whose: str) -> Iterator[Finding]:
    """Files of a folder by their sha256."""
    for name, expected in content.items():
        path = folder / name
        if not path.is_file():
            yield disagrees(path, f"is missing, {whose} names it")
        elif file_digest(path, path.stat()) != expected:
            yield disagrees(path, f"was altered: its sha256 is not the {expected[:12]}... of {whose}")


def verify_lock(p: Placed, record: Mapping[str, Any]) -> Iterator[Finding]:
    """`dvc.lock` against the published files and the parameters of the run; only where it names this record."""
    path = p.folder / "dvc.lock"
    if not path.is_file():
        yield unchecked(path, "is not there: the results are not versioned by DVC")
        return
    stages: Mapping[str, Any] = (yaml.safe_load(path.read_bytes()) or {}).get("stages", {})
    own = f"{p.output.results}/{RECORD}"
    for name, stage in stages.items():
        outs = {out["path"]: out for out in stage.get("outs", [])}
        if own not in outs:
            continue
        for place, out in outs.items():
            if (p.folder / place).is_file():
                yield from differing(
                    place, md5((p.folder / place).read_bytes()), out["md5"], f"the stage {name} of dvc.lock"
                )
            elif not (p.folder / place).is_dir():
                yield disagrees(place, f"is missing, the stage {name} of dvc.lock names it")
        yield from changed_folders(p.folder, name)
        for key, value in locked(stage).items():
            if key in record["parameters"] and key.partition(".")[0] not in CHANGING:
                yield from differing(f"dvc.lock, {key}", value, record["parameters"][key], "the record of the run")
        return
    yield unchecked(path, f"names no {own}: the results were not made by `dvc repro`")


def locked(stage: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a stage by dotted key, less lists, and less those for which its case or its method stands for another value."""
    given: Mapping[str, Any] = stage.get("params", {}).get("params.yaml", {})
    cases = [value for name, value in given.items() if name.startswith("cases.")]
    presets = [*cases, (given.get("methods") or {}).get(given.get("method"))]
    other = {key for preset in presets for key, _ in flat(preset or {})}
    return {key: value for key, value in flat(given) if key not in other and not isinstance(value, list)}


def changed_folders(folder: Path, stage: str) -> Iterator[Finding]:
    """Folders among the outs that DVC finds changed, and what it says of the rest."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json", stage],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        yield unchecked("dvc status", (done.stderr.strip().splitlines() or ["it failed"])[-1])
        return
    for changes in json.loads(done.stdout or "{}").values():
        for change in (each for each in changes if isinstance(each, dict)):
            for place, how in change.get("changed outs", {}).items():
                if not (folder / place).is_file():
                    yield disagrees(place, f"DVC finds it {how}")
            if others := ", ".join(change.get("changed deps", {})):
                yield unchecked("dvc.lock", f"the stage {stage} was run with other {others} than the working tree has")


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of nested values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def verify_code(nodes: Mapping[Artifact, Node]) -> Iterator[Finding]:
    """The files of every step against the commit that its manifest names, in the repository of this project."""
    changed, absent = set[str](), set[str]()
    for artifact, node in nodes.items():
        git = node.manifest.get("git", {})
        commit = git.get("commit")
        if git.get("dirty"):
            changed.add(str(commit)[:8])
        elif commit is not None and provenance.ask_git("cat-file", "-e", f"{commit}^{{commit}}") is None:
            absent.add(commit[:8])
        elif commit is not None:
            for file, expected in node.manifest.get("sources", {}).items():
                if at_commit(commit, file) != expected:
                    yield disagrees(
                        f"git, {file}", f"is another one at commit {commit[:8]} than the one that made {artifact}"
                    )
    if changed:
        yield unchecked(
            "git",
            f"steps ran beside uncommitted changes to {', '.join(sorted(changed))}: their code is known by sha256",
        )
    if absent:
        yield unchecked("git", f"commits are not in this repository: {', '.join(sorted(absent))}")


@cache
def at_commit(commit: str, file: str) -> str | None:
    """sha256 of a file of the project at a commit."""
    done = subprocess.run(
        ["git", "-C", str(provenance.ROOT), "show", f"{commit}:{file}"], capture_output=True, check=False
    )
    return hashlib.sha256(done.stdout).hexdigest() if done.returncode == 0 else None


def verify_tracking(p: Placed, run: Artifact, record: Mapping[str, Any]) -> Iterator[Finding]:
    """The tags and the numbers of the run in MLflow."""
    from mlflow import MlflowClient

    from mgaa.boundary import masked
    from tasks.tracking import cut, legal, measurements
    from tasks.tracking_store import SQLITE, reach, recorded

    uri = p.tracking_uri
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).is_file():
        yield unchecked("MLflow", f"{masked(uri)} is not there")
        return
    try:
        with recorded(uri):
            if uri.startswith("http"):
                reach(uri)
            client = MlflowClient(uri)
            experiment = client.get_experiment_by_name(p.tracking.experiment)
            ids = [experiment.experiment_id] if experiment else []
            found = client.search_runs(ids, f"tags.`run.record` = '{run.digest}'") if ids else []
    except MgaaError as error:
        yield unchecked("MLflow", str(error))
        return
    if not found:
        yield disagrees("MLflow", f"has no run with the tag run.record of {run} in {masked(uri)}")
        return
    data, metrics = found[0].data, p.results / "metrics.json"
    for stage, made in record["artifacts"].items():
        short = " ".join(each.partition("/")[2][:12] for each in made)
        yield from differing(
            f"MLflow, tag artifact.{stage}", data.tags.get(f"artifact.{stage}"), cut(short), "the record of the run"
        )
    for tag, value in record["tags"].items():
        yield from differing(f"MLflow, tag {tag}", data.tags.get(tag), cut(value), "the record of the run")
    if record["published"].get(metrics.relative_to(p.folder).as_posix()) and metrics.is_file():
        told = measurements(json_of(metrics), json_of(p.results / "allocation.json"))
        for name, value in told.items():
            yield from differing(f"MLflow, metric {name}", data.metrics.get(legal(name)), value, str(metrics))


def json_of(path: Path) -> dict[str, Any]:
    """A file of results; an unreadable one is empty, for its sha256 was told already."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
