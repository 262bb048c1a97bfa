"""A run's record against everything outside the store that it names.

That is what it published, the files of the backbone and the data that it read, and the code at its git commit. Each check yields findings;
what is not on this machine is reported as unchecked. `dvc.lock` has a file of its own (tasks/audit/verify_dvc.py), and so has MLflow
(tasks/audit/verify_tracking.py).
"""

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mgaa.checkpoints.folder import GGUF
from mgaa.checkpoints.ownership import MARK
from tasks.cache import environment
from tasks.cache.artifact import Artifact
from tasks.cache.manifest import MANIFEST, DamagedError, file_digest, read_manifest
from tasks.config.parameters import PathSections
from tasks.record.findings import Finding, disagreement, unchecked
from tasks.record.lineage import Node
from tasks.record.run_record import PREPARED, artifacts_of, digest_of, place_of

MADE = ("demo", "scenes")
"""Sources that the project generates itself: records name versions in place of files."""


def verify_published(params: PathSections, run: Artifact, record: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the published results and checkpoint; only the latest run has any."""
    path = place_of(params.results, record["flow"])
    if not path.is_file() or (digest_of(path.read_bytes()) != run and read_json(path).get("end", "") > record["end"]):
        yield unchecked(path, f"is not of {run}: its results are no longer published")
        return
    if digest_of(path.read_bytes()) != run:
        yield disagreement(path, f"was altered: it is not the record of {run}")
    yield from verify_files(params.folder, record["published"], "the record of the run")
    yield from added_files(params.folder, record)


def added_files(folder: Path, record: Mapping[str, Any]) -> Iterator[Finding]:
    """Report files that the run did not write in the folders that it published: an adapter in a checkpoint changes what is loaded."""
    known = record["published"]
    for root in record.get("folders", []):
        for path in sorted((folder / root).rglob("*")):
            if path.is_file() and path.relative_to(folder).as_posix() not in known:
                yield disagreement(path, "was added: the record of the run does not name it")


def verify_prepared(params: PathSections, record: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the texts that DVC versions (`data/prepared`), if they are those of the run."""
    made = {stage: artifact for stage, (artifact, *_) in artifacts_of(record).items()}
    for stage, place in (("texts", params.folder / PREPARED), ("questions", params.folder / PREPARED / "questions")):
        if not (place / MANIFEST).is_file():
            continue
        try:
            manifest = read_manifest(place)
        except DamagedError as damage:
            yield disagreement(place, str(damage))
            continue
        if stage not in made or manifest["digest"] != made[stage].digest:
            yield unchecked(place, "holds other texts than those of the run")
            continue
        content = {file: entry["sha256"] for file, entry in manifest["files"].items()}
        yield from verify_files(place, content, "its manifest")
        for path in sorted(each for each in place.iterdir() if each.is_file()):
            if path.name not in (*content, MANIFEST, MARK):
                yield disagreement(path, "was added: its manifest does not name it")


def verify_inputs(params: PathSections, record: Mapping[str, Any]) -> Iterator[Finding]:
    """Check the files of the backbone, of the data, and those that parameters name."""
    given, sources = record["parameters"], record["sources"]
    backbone = Path(given["backbone.source"]).expanduser()
    folder = backbone.parent if backbone.suffix == GGUF else backbone
    yield from files_below(params.folder, folder, sources["backbone"])
    for section, content in sources["data"].items():
        name = given.get(f"data.{section}.source") or source_of(given["data.questions"], section)
        if name not in MADE:
            yield from files_below(params.folder, Path(name).expanduser().parent, content, name)
    for key, content in sources["parameters"].items():
        yield from files_below(params.folder, Path(given[key]).expanduser().parent, content)


def source_of(questions: list[Mapping[str, Any]], section: str) -> str:
    """Source of a set of questions."""
    return next(str(each["source"]) for each in questions if section == f"questions.{each['name']}")


def files_below(folder: Path, source: Path, content: Mapping[str, str], name: str = "") -> Iterator[Finding]:
    """Check the files of a source, looked up from the folder of `params.yaml`; report it as unchecked if it is not on this machine."""
    place = folder / source
    if content and not place.is_dir():
        yield unchecked(name or source, "is not on this machine (an id of the Hub has its commit in the record)")
        return
    yield from verify_files(place, content, "the record of the run")


def verify_files(folder: Path, content: Mapping[str, str], whose: str) -> Iterator[Finding]:
    """Check the files of a folder by their sha256."""
    for name, expected in content.items():
        path = folder / name
        if not path.is_file():
            yield disagreement(path, f"is missing, {whose} names it")
        elif file_digest(path, path.stat()) != expected:
            yield disagreement(path, f"was altered: its sha256 is not the {expected[:12]}... of {whose}")


def verify_code(nodes: Mapping[Artifact, Node]) -> Iterator[Finding]:
    """Check the source files of every step against the commit that its manifest names, in the repository of this project."""
    changed, absent = set[str](), set[str]()
    for artifact, node in nodes.items():
        git = node.manifest.get("git", {})
        commit = git.get("commit")
        if git.get("dirty"):
            changed.add(str(commit)[:8])
        elif commit is not None and environment.run_git("cat-file", "-e", f"{commit}^{{commit}}") is None:
            absent.add(commit[:8])
        elif commit is not None:
            for file, expected in node.manifest.get("sources", {}).items():
                if digest_at_commit(commit, file) != expected:
                    yield disagreement(
                        f"git, {file}", f"differs at commit {commit[:8]} from the file that made {artifact}"
                    )
    if changed:
        yield unchecked(
            "git",
            f"steps ran with uncommitted changes to {', '.join(sorted(changed))}: their code is known by sha256",
        )
    if absent:
        yield unchecked("git", f"commits are not in this repository: {', '.join(sorted(absent))}")


@cache
def digest_at_commit(commit: str, file: str) -> str | None:
    """sha256 of a file of the project at a commit; None if the commit has no such file."""
    done = subprocess.run(
        ["git", "-C", str(environment.ROOT), "show", f"{commit}:{file}"], capture_output=True, check=False
    )
    return hashlib.sha256(done.stdout).hexdigest() if done.returncode == 0 else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of results; an unreadable one counts as empty, since its sha256 has been reported already."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
