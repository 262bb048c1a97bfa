"""A run's record against `dvc.lock`: the stage that published it, and the stages upstream of that one.

A stage belongs to the run if it names the record by MD5; its path proves nothing, since a run started by hand publishes to the same places.
Of such a stage everything is compared: its command with `dvc.yaml`, its parameters with the record, its outs with the files, and its
dependencies with the commit of the run. Hashes and sizes are computed by DVC itself, for the working tree and for the commit alike.
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
from tasks.cache.manifest import RECORD, DamagedError, format_json
from tasks.config.parameters import PathSections
from tasks.record.findings import Finding, compare_values, disagreement, unchecked
from tasks.record.run_record import digest_of, md5

if TYPE_CHECKING:
    from dvc.repo import Repo

PIPELINE = "dvc.yaml"
CHANGING = ("output", "runner", "store", "tracking")
"""Sections that `dvc.lock` may contain and that change no result."""
PARAMETERS = "params.yaml"
HASHED = ("md5", "size", "nfiles")
"""Fields of a file or folder in `dvc.lock`."""


def verify_lock(params: PathSections, run: Artifact, record: Mapping[str, Any]) -> Iterator[Finding]:
    """Check `dvc.lock` against everything that the run used and published, if it names this very record."""
    path = params.folder / LOCK
    if not path.is_file():
        yield unchecked(path, "is not there: the results are not versioned by DVC")
        return
    try:
        stages = read_stages(path.read_bytes(), LOCK)
    except DamagedError as damage:
        yield disagreement(path, str(damage))
        return
    own = md5(format_json(record))
    name = next((stage for stage, entry in stages.items() if own in records_of(entry)), None)
    if name is None:
        yield explain_missing(params, run, record, path, stages)
        return
    with_files = is_published_last(params, run)
    if not with_files:
        yield unchecked(LOCK, f"names {run}, but another run has published its results since")
    lock = Lock(params.folder, stages, record)
    for stage in (name, *lock.before(name)):
        yield from lock.definition(stage)
        yield from lock.parameters(stage)
        yield from lock.dependencies(stage)
        if with_files or stage != name:
            yield from lock.outs(stage)


def records_of(stage: Mapping[str, Any]) -> list[str]:
    """MD5 of every record that is an out of a stage."""
    return [out.get("md5", "") for out in stage.get("outs", []) if Path(out["path"]).name == RECORD]


def is_published_last(params: PathSections, run: Artifact) -> bool:
    """Tell whether this run has published the results on disk."""
    path = params.results / RECORD
    return path.is_file() and digest_of(path.read_bytes()) == run


def explain_missing(
    params: PathSections, run: Artifact, record: Mapping[str, Any], path: Path, stages: Mapping[str, Any]
) -> Finding:
    """Build the finding for a lock that names another record or none: wrong only if DVC ran what is published now."""
    stage = record["tags"].get("dvc.stage")
    if stage in stages and records_of(stages[stage]) and is_published_last(params, run):
        return disagreement(
            f"{LOCK}, {stage}",
            f"names another record than {run}, which this stage published: `dvc checkout` brings the other one",
        )
    return unchecked(
        path, f"does not name {run}: its results were not made by `dvc repro`, or are no longer the latest"
    )


@dataclass(frozen=True)
class Lock:
    """Stages of `dvc.lock`, with the record that one of them published."""

    folder: Path
    stages: Mapping[str, Any]
    record: Mapping[str, Any]

    def before(self, name: str) -> list[str]:
        """Stages whose outs a stage depends on, directly or not, the nearest first."""
        upstream, waiting = list[str](), [name]
        while waiting:
            needed = {dep["path"] for dep in self.stages[waiting.pop()].get("deps", [])}
            for other, told in self.stages.items():
                if other not in (name, *upstream) and needed & {out["path"] for out in told.get("outs", [])}:
                    upstream.append(other)
                    waiting.append(other)
        return upstream

    def definition(self, name: str) -> Iterator[Finding]:
        """Check the command of a stage and the names in its definition against `dvc.yaml` of the commit or of the working tree."""
        known = [
            stages[name] for stages in (self.pipeline(at_commit=True), self.pipeline(at_commit=False)) if name in stages
        ]
        if not known:
            yield unchecked(f"{LOCK}, {name}", f"{PIPELINE} has no such stage")
            return
        locked = stage_definition(self.stages[name])
        for part in locked:
            if locked[part] not in (expected := [stage_definition(stage)[part] for stage in known]):
                yield from compare_values(f"{LOCK}, {name}.{part}", locked[part], expected[0], PIPELINE)

    def pipeline(self, *, at_commit: bool) -> dict[str, Any]:
        """Read the stages of `dvc.yaml`; none if the file is missing."""
        repo = self.past if at_commit else self.here
        place = None if repo is None else repo.fs.join(repo.root_dir, PIPELINE)
        if repo is None or not repo.fs.exists(place):
            return {}
        stages: dict[str, Any] = (yaml.safe_load(repo.fs.read_text(place)) or {}).get("stages", {})
        return stages

    def parameters(self, name: str) -> Iterator[Finding]:
        """Check the parameters of a stage, read as its command reads them, against those of the record."""
        given = self.stages[name].get("params", {}).get(PARAMETERS, {})
        sections = {key.partition(".")[0] for key in given} - {"case", "cases", "methods", *CHANGING}
        try:
            flat = rebuild_parameters(self.folder / PARAMETERS, given, self.stages[name]["cmd"])
        except UsageError as error:
            yield disagreement(f"{LOCK}, {name}.params", f"cannot be parameters of the run: {error}")
            return
        known = self.record["parameters"]
        for key, value in given.items():
            preset, _, entry = key.partition(".")
            if preset in (presets := self.record.get("presets", {})):
                expected = presets[preset].get(entry) if entry else presets[preset]
                yield from compare_values(f"{LOCK}, {key}", value, expected, "the record of the run")
        for key, value in flat.items():
            told = any(key == each or key.startswith(f"{each}.") for each in (*given, "method"))
            if told and key in known and key.partition(".")[0] in sections:
                yield from compare_values(f"{LOCK}, {key}", value, known[key], "the record of the run")

    def outs(self, name: str) -> Iterator[Finding]:
        """Check the outs of a stage against the files of the working tree."""
        for out in self.stages[name].get("outs", []):
            found = None if self.here is None else hash_path(self.here, out["path"])
            if found is None:
                yield disagreement(self.folder / out["path"], f"is missing, the stage {name} of {LOCK} names it")
            else:
                yield from compare_path(out, found, f"{LOCK}, {name}.outs")

    def dependencies(self, name: str) -> Iterator[Finding]:
        """Check the dependencies of a stage: outs of other stages against the lock, everything else against the commit of the run."""
        outs = {out["path"]: out for stage in self.stages.values() for out in stage.get("outs", [])}
        for dep in self.stages[name].get("deps", []):
            where = f"{LOCK}, {name}.deps"
            if dep["path"] in outs:
                yield from compare_path(dep, outs[dep["path"]], where, "the stage that makes it")
            elif self.past is None or (found := hash_path(self.past, dep["path"])) is None:
                yield unchecked(f"{where}, {dep['path']}", "the commit of the run does not have it")
            elif not self.record["git"]["dirty"]:
                yield from compare_path(dep, found, where, f"commit {self.record['git']['commit'][:8]}")
        if self.past is not None and not self.record["git"]["dirty"]:
            yield from self.values(name, self.past)

    def values(self, name: str, past: "Repo") -> Iterator[Finding]:
        """Check the values from files other than `params.yaml` against the commit of the run."""
        for file, given in self.stages[name].get("params", {}).items():
            place = past.fs.join(past.root_dir, file)
            if file == PARAMETERS or not past.fs.exists(place):
                continue
            known = yaml.safe_load(past.fs.read_text(place))
            for key, value in given.items():
                found = known
                for part in key.split("."):
                    found = found.get(part) if isinstance(found, Mapping) else None
                yield from compare_values(
                    f"{LOCK}, {name}.params, {file}, {key}", value, found, "the commit of the run"
                )

    @cached_property
    def here(self) -> "Repo | None":
        """DVC's view of the working tree."""
        return repository(self.folder)

    @cached_property
    def past(self) -> "Repo | None":
        """DVC's view of the commit of the run; None if git does not have it."""
        commit = self.record["git"]["commit"]
        return None if commit is None else repository(self.folder, commit)


def stage_definition(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Command of a stage and the names of all that it depends on and makes, from `dvc.yaml` and `dvc.lock` alike."""
    files = [*stage.get("outs", []), *stage.get("metrics", [])]
    return {
        "cmd": stage.get("cmd"),
        "deps": sorted(path_of(each) for each in stage.get("deps", [])),
        "outs": sorted(path_of(each) for each in files),
        "params": parameter_names(stage.get("params", [])),
    }


def parameter_names(params: Any) -> list[str]:
    """Names of parameters with their files, from a list in `dvc.yaml` or a mapping in the lock."""
    listed = [params] if isinstance(params, Mapping) else params
    files = [each if isinstance(each, Mapping) else {PARAMETERS: [each]} for each in listed]
    return sorted(f"{file}: {key}" for given in files for file, keys in given.items() for key in keys)


def path_of(entry: Any) -> str:
    """Path of a dependency or out, which is a plain path, or has options below it or a hash next to it."""
    return str(entry if isinstance(entry, str) else entry.get("path", next(iter(entry))))


def rebuild_parameters(path: Path, given: Mapping[str, Any], command: str) -> dict[str, Any]:
    """Parameters of a stage by dotted key: `params.yaml` updated by `dvc.lock`, then by the overrides of the stage's command.

    Raises:
        UsageError: they are not the parameters of a run.
    """
    from tasks.config.overrides import read_parameters
    from tasks.config.parameters import load_parameters

    values = read_parameters(path)
    for key, value in given.items():
        *above, last = key.split(".")
        place = values
        for part in above:
            place = place.setdefault(part, {})
        place[last] = value
    with TemporaryDirectory() as folder:
        written = Path(folder) / "params.yaml"
        written.write_text(yaml.safe_dump(values), encoding="utf-8")
        return load_parameters(
            written, [word for word in command.split() if "=" in word and not word.startswith("-")]
        ).flat()


def compare_path(
    told: Mapping[str, Any], found: Mapping[str, Any], where: str, whose: str = "the file"
) -> Iterator[Finding]:
    """Compare the hash and the sizes of one path in `dvc.lock` with those that were found."""
    for key in HASHED:
        yield from compare_values(f"{where}, {told['path']}, {key}", told.get(key), found.get(key), whose)


def repository(folder: Path, commit: str | None = None) -> "Repo | None":
    """Open the project as DVC sees it, in the working tree or at a commit; None if there is none."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    try:
        return Repo(str(folder), rev=commit)
    except (DvcException, SCMError):
        return None


def hash_path(repo: "Repo", path: str) -> dict[str, Any] | None:
    """MD5, size and number of files of a path, in the form of `dvc.lock`; None if nothing is there."""
    from dvc_data.hashfile.build import build

    place = repo.fs.join(repo.root_dir, *path.split("/"))
    if not repo.fs.exists(place):
        return None
    _, meta, tree = build(repo.cache.local, place, repo.fs, "md5", dry_run=True, ignore=repo.dvcignore)
    return {"md5": tree.hash_info.value, "size": meta.size, "nfiles": meta.nfiles}
