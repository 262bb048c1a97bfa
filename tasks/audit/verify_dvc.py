"""A run's record against `dvc.lock`: the stage that published it, and the stages before that one.

A stage is this run's if it names the record by MD5; a path says nothing, for a run by hand publishes to the same places. Of such a
stage everything is compared: its command with `dvc.yaml`, its parameters with the record, its outs with the files, and its dependencies
with the commit of the run. Hashes and sizes are DVC's own, of the working tree and of the commit alike.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml

from mgaa.errors import UsageError
from tasks.audit.dvc_lock import LOCK, read_stages
from tasks.cache.artifact import Artifact
from tasks.cache.manifest import RECORD, DamagedError, readable
from tasks.config.parameters import Placed
from tasks.record.findings import Finding, differing, disagrees, unchecked
from tasks.record.run_record import digest_of, md5

if TYPE_CHECKING:
    from dvc.repo import Repo

PIPELINE = "dvc.yaml"
CHANGING = ("output", "runner", "store", "tracking")
"""Sections that `dvc.lock` may hold and that change no result."""
HASHED = ("md5", "size", "nfiles")
"""What `dvc.lock` tells of a file or folder."""


def verify_lock(p: Placed, run: Artifact, record: Mapping[str, Any]) -> Iterator[Finding]:
    """`dvc.lock` against everything that the run used and published, where it names this very record."""
    path = p.folder / LOCK
    if not path.is_file():
        yield unchecked(path, "is not there: the results are not versioned by DVC")
        return
    try:
        stages = read_stages(path.read_bytes(), LOCK)
    except DamagedError as damage:
        yield disagrees(path, str(damage))
        return
    own = md5(readable(record))
    name = next((stage for stage, told in stages.items() if own in records_of(told)), None)
    if name is None:
        yield missing(p, run, record, path, stages)
        return
    with_files = published_last(p, run)
    if not with_files:
        yield unchecked(LOCK, f"names {run}, but another run has published its results since")
    lock = Lock(p.folder, stages, record)
    for stage in (name, *lock.before(name)):
        yield from lock.definition(stage)
        yield from lock.parameters(stage)
        yield from lock.dependencies(stage)
        if with_files or stage != name:
            yield from lock.outs(stage)


def records_of(stage: Mapping[str, Any]) -> list[str]:
    """The MD5 of every record that is an out of a stage."""
    return [out.get("md5", "") for out in stage.get("outs", []) if Path(out["path"]).name == RECORD]


def published_last(p: Placed, run: Artifact) -> bool:
    """Tell whether the results on the disk are those of this run."""
    path = p.results / RECORD
    return path.is_file() and digest_of(path.read_bytes()) == run


def missing(p: Placed, run: Artifact, record: Mapping[str, Any], path: Path, stages: Mapping[str, Any]) -> Finding:
    """The finding for a lock that names another record or none: wrong only where DVC ran what is published now."""
    stage = record["tags"].get("dvc.stage")
    if stage in stages and records_of(stages[stage]) and published_last(p, run):
        return disagrees(
            f"{LOCK}, {stage}",
            f"names another record than {run}, which this stage published: `dvc checkout` brings the other one",
        )
    return unchecked(
        path, f"does not name {run}: its results were not made by `dvc repro`, or are no longer the latest"
    )


@dataclass(frozen=True)
class Lock:
    """The stages of `dvc.lock`, with the record that one of them published."""

    folder: Path
    stages: Mapping[str, Any]
    record: Mapping[str, Any]

    def before(self, name: str) -> list[str]:
        """The stages whose outs a stage depends on, near ones first."""
        found, waiting = list[str](), [name]
        while waiting:
            needed = {dep["path"] for dep in self.stages[waiting.pop()].get("deps", [])}
            for other, told in self.stages.items():
                if other not in (name, *found) and needed & {out["path"] for out in told.get("outs", [])}:
                    found.append(other)
                    waiting.append(other)
        return found

    def definition(self, name: str) -> Iterator[Finding]:
        """The command of a stage and what it names, against `dvc.yaml` of the commit or of the working tree."""
        known = [
            stages[name] for stages in (self.pipeline(at_commit=True), self.pipeline(at_commit=False)) if name in stages
        ]
        if not known:
            yield unchecked(f"{LOCK}, {name}", f"{PIPELINE} has no such stage")
            return
        told = named(self.stages[name])
        for part in told:
            if told[part] not in (expected := [named(stage)[part] for stage in known]):
                yield from differing(f"{LOCK}, {name}.{part}", told[part], expected[0], PIPELINE)

    def pipeline(self, *, at_commit: bool) -> dict[str, Any]:
        """The stages of `dvc.yaml`; none where it is not there."""
        repo = self.past if at_commit else self.here
        place = None if repo is None else repo.fs.join(repo.root_dir, PIPELINE)
        if repo is None or not repo.fs.exists(place):
            return {}
        stages: dict[str, Any] = (yaml.safe_load(repo.fs.read_text(place)) or {}).get("stages", {})
        return stages

    def parameters(self, name: str) -> Iterator[Finding]:
        """The parameters of a stage, read as its command reads them, against those of the record."""
        given = self.stages[name].get("params", {}).get("params.yaml", {})
        sections = {key.partition(".")[0] for key in given} - {"case", "cases", "methods", *CHANGING}
        try:
            flat = rebuilt(self.folder / "params.yaml", given, self.stages[name]["cmd"])
        except UsageError as error:
            yield disagrees(f"{LOCK}, {name}.params", f"cannot be parameters of the run: {error}")
            return
        known = self.record["parameters"]
        for key, value in given.items():
            preset, _, entry = key.partition(".")
            if preset in (presets := self.record.get("presets", {})):
                expected = presets[preset].get(entry) if entry else presets[preset]
                yield from differing(f"{LOCK}, {key}", value, expected, "the record of the run")
        for key, value in flat.items():
            told = any(key == each or key.startswith(f"{each}.") for each in (*given, "method"))
            if told and key in known and key.partition(".")[0] in sections:
                yield from differing(f"{LOCK}, {key}", value, known[key], "the record of the run")

    def outs(self, name: str) -> Iterator[Finding]:
        """The outs of a stage against the files of the working tree."""
        for out in self.stages[name].get("outs", []):
            found = None if self.here is None else hashed(self.here, out["path"])
            if found is None:
                yield disagrees(self.folder / out["path"], f"is missing, the stage {name} of {LOCK} names it")
            else:
                yield from compared(out, found, f"{LOCK}, {name}.outs")

    def dependencies(self, name: str) -> Iterator[Finding]:
        """The dependencies of a stage: outs of others as these are told, everything else as it is at the commit of the run."""
        told = {out["path"]: out for stage in self.stages.values() for out in stage.get("outs", [])}
        for dep in self.stages[name].get("deps", []):
            where = f"{LOCK}, {name}.deps"
            if dep["path"] in told:
                yield from compared(dep, told[dep["path"]], where, "the stage that makes it")
            elif self.past is None or (found := hashed(self.past, dep["path"])) is None:
                yield unchecked(f"{where}, {dep['path']}", "the commit of the run does not have it")
            elif not self.record["git"]["dirty"]:
                yield from compared(dep, found, where, f"commit {self.record['git']['commit'][:8]}")

    @cached_property
    def here(self) -> "Repo | None":
        """DVC's view of the working tree."""
        return repository(self.folder)

    @cached_property
    def past(self) -> "Repo | None":
        """DVC's view of the commit of the run; None where git does not have it."""
        commit = self.record["git"]["commit"]
        return None if commit is None else repository(self.folder, commit)


def named(stage: Mapping[str, Any]) -> dict[str, Any]:
    """The command of a stage and the names of all that it depends on and makes, from `dvc.yaml` and `dvc.lock` alike."""
    params = stage.get("params", [])
    files = [*stage.get("outs", []), *stage.get("metrics", [])]
    return {
        "cmd": stage.get("cmd"),
        "deps": sorted(path_of(each) for each in stage.get("deps", [])),
        "outs": sorted(path_of(each) for each in files),
        "params": sorted(params.get("params.yaml", []) if isinstance(params, Mapping) else params),
    }


def path_of(entry: Any) -> str:
    """The path of a dependency or out: plain, with options below it, or with its hash beside it."""
    return str(entry if isinstance(entry, str) else entry.get("path", next(iter(entry))))


def rebuilt(path: Path, given: Mapping[str, Any], command: str) -> dict[str, Any]:
    """The parameters of a stage by dotted key: those of `dvc.lock` in the place of those of `params.yaml`, and its command's overrides.

    Raises:
        UsageError: they are no parameters of a run.
    """
    from tasks.config.overrides import read
    from tasks.config.parameters import load

    values = read(path)
    for key, value in given.items():
        *above, last = key.split(".")
        place = values
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    with TemporaryDirectory() as folder:
        written = Path(folder) / "params.yaml"
        written.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load(written, [word for word in command.split() if "=" in word and not word.startswith("-")]).flat()


def compared(
    told: Mapping[str, Any], found: Mapping[str, Any], where: str, whose: str = "the file"
) -> Iterator[Finding]:
    """The hash and the sizes of one path in `dvc.lock` against what was found."""
    for key in HASHED:
        yield from differing(f"{where}, {told['path']}, {key}", told.get(key), found.get(key), whose)


def repository(folder: Path, commit: str | None = None) -> "Repo | None":
    """The project as DVC sees it, in the working tree or at a commit; None where there is none."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    try:
        return Repo(str(folder), rev=commit)
    except (DvcException, SCMError):
        return None


def hashed(repo: "Repo", path: str) -> dict[str, Any] | None:
    """MD5, size and number of files of a path, as `dvc.lock` tells them; None where there is nothing."""
    from dvc_data.hashfile.build import build

    place = repo.fs.join(repo.root_dir, *path.split("/"))
    if not repo.fs.exists(place):
        return None
    _, meta, tree = build(repo.cache.local, place, repo.fs, "md5", dry_run=True, ignore=repo.dvcignore)
    return {"md5": tree.hash_info.value, "size": meta.size, "nfiles": meta.nfiles}
