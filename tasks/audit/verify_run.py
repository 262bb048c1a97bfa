"""A run's record against everything it names that lies outside the store.

What it published, the files of the backbone and of the data that it read, and the code at its git commit. Each is a list of findings;
what is not on this machine is told as not looked at. `dvc.lock` has a file of its own (tasks/audit/verify_dvc.py), and so has MLflow
(tasks/audit/verify_tracking.py).
"""

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mgaa.checkpoints.ownership import MARK
from tasks.cache import environment
from tasks.cache.artifact import Artifact
from tasks.cache.manifest import MANIFEST, DamagedError, file_digest, read_manifest
from tasks.config.parameters import Placed
from tasks.record.findings import Finding, disagrees, unchecked
from tasks.record.lineage import Node
from tasks.record.run_record import PREPARED, artifacts_of, digest_of, place_of

MADE = ("demo", "scenes")
"""Sources that the project makes itself: their record has versions in the place of files."""


def verify_published(p: Placed, run: Artifact, record: Mapping[str, Any]) -> Iterator[Finding]:
    """The results and the checkpoint of the run that is published last; an older run has none."""
    path = place_of(p.results, record["flow"])
    if not path.is_file() or (digest_of(path.read_bytes()) != run and json_of(path).get("end", "") > record["end"]):
        yield unchecked(path, f"is not of {run}: its results are no longer published")
        return
    if digest_of(path.read_bytes()) != run:
        yield disagrees(path, f"was altered: it is not the record of {run}")
    yield from files(p.folder, record["published"], "the record of the run")
    yield from added(p.folder, record)


def added(folder: Path, record: Mapping[str, Any]) -> Iterator[Finding]:
    """Files in the folders that the run published which it did not write: an adapter in a checkpoint changes what is loaded from it."""
    known = record["published"]
    for root in record.get("folders", []):
        for path in sorted((folder / root).rglob("*")):
            if path.is_file() and path.relative_to(folder).as_posix() not in known:
                yield disagrees(path, "was added: the record of the run does not name it")


def verify_prepared(p: Placed, record: Mapping[str, Any]) -> Iterator[Finding]:
    """The texts that DVC versions (`data/prepared`), where they are those of the run."""
    made = {stage: artifact for stage, (artifact, *_) in artifacts_of(record).items()}
    for stage, place in (("texts", p.folder / PREPARED), ("questions", p.folder / PREPARED / "questions")):
        if not (place / MANIFEST).is_file():
            continue
        try:
            manifest = read_manifest(place)
        except DamagedError as damage:
            yield disagrees(place, str(damage))
            continue
        if stage not in made or manifest["digest"] != made[stage].digest:
            yield unchecked(place, "holds other texts than those of the run")
            continue
        content = {file: entry["sha256"] for file, entry in manifest["files"].items()}
        yield from files(place, content, "its manifest")
        for path in sorted(each for each in place.iterdir() if each.is_file()):
            if path.name not in (*content, MANIFEST, MARK):
                yield disagrees(path, "was added: its manifest does not name it")


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


def verify_code(nodes: Mapping[Artifact, Node]) -> Iterator[Finding]:
    """The files of every step against the commit that its manifest names, in the repository of this project."""
    changed, absent = set[str](), set[str]()
    for artifact, node in nodes.items():
        git = node.manifest.get("git", {})
        commit = git.get("commit")
        if git.get("dirty"):
            changed.add(str(commit)[:8])
        elif commit is not None and environment.ask_git("cat-file", "-e", f"{commit}^{{commit}}") is None:
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
        ["git", "-C", str(environment.ROOT), "show", f"{commit}:{file}"], capture_output=True, check=False
    )
    return hashlib.sha256(done.stdout).hexdigest() if done.returncode == 0 else None


def json_of(path: Path) -> dict[str, Any]:
    """A file of results; an unreadable one is empty, for its sha256 was told already."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
