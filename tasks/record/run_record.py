"""The record of a run: one sealed artifact that names everything the run made and everything it depended on.

A checkpoint's manifest leads to its ranks, statistics and texts; the record leads to all of them at once, with the parameters, the files of
the backbone and of the data by sha256, and the published files. The same bytes lie in the store (`run/<digest>/record.json`) and
next to the results (`results/record.json`, an out of DVC), so either is found from the other, and both from a revision of DVC.

The record is stored under the identity of the run, as the result of a step is under its cache key: whether the same run was made before is
looked up (`last_run`) without a model or a text in memory.
"""

import getpass
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from mgaa.masking import mask_values
from tasks.cache import environment
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import publish_file
from tasks.cache.executions import Execution, keys_by
from tasks.cache.manifest import (
    MANIFEST,
    RECORD,
    RUN,
    DamagedError,
    content_digest,
    digest,
    file_digest,
    format_json,
    read_manifest,
)
from tasks.cache.source import code_digest
from tasks.cache.stage import manifest_input
from tasks.config.parameters import Parameters, flatten
from tasks.record.lineage import describe_lineage, full_name, run_facts
from tasks.record.signing import sign
from tasks.record.step_usage import usage_of

KIND = RUN
logger = logging.getLogger(__name__)
ELSEWHERE = {
    *("output", "sweep", "study", "sensitivity", "profile"),
    *("runner", "store", "tracking", "registry", "schedule"),
}
"""Sections that change no result of a run: where it computes, where it is stored, and those of other flows."""
NUMBERS = ("metrics.json", "allocation.json")
PUBLISHED = (*NUMBERS, "report.html", "figures", "plots")
"""Results of a run, besides its record."""
PREPARED = "data/prepared"
"""Folder to which texts and questions are exported for DVC to version."""
SECTION = {"sweep": "sweep", "search": "study", "sensitivity": "sensitivity"}
"""Own section of a flow, on which its results depend."""
FILES = ("ranks.profile", "ranks.path", "ratios.path", "search.history", "evaluation.tasks_folder")
"""Parameters that name input files."""


@dataclass(frozen=True)
class Span:
    """Start of a run, and its duration in seconds by a monotonic clock."""

    start: datetime
    seconds: float


def run_identity(params: Parameters, flow: str) -> dict[str, Any]:
    """Everything that the results of a run depend on; like a step's key (tasks/cache/stage.py), but with all code and all numerical
    packages.

    The device is not part of it: `backbone.device` is a parameter, and if that is `auto`, a GPU that came or went changes the keys of the
    steps only.

    Raises:
        InputError: the backbone or a data file is missing.
    """
    sections = params.model_dump(by_alias=True, exclude=ELSEWHERE - {SECTION.get(flow)})
    return {
        "task": flow,
        "kind": KIND,
        "parameters": mask_values(dict(flatten(sections))),
        "sources": source_digests(params),
        "code": code_digest(),
        **environment.environment(environment.NUMERICAL),
        "flags": {},
    }


def source_digests(params: Parameters) -> dict[str, Any]:
    """sha256 of every file that a run reads: those of the backbone, of each data section, and those that parameters name."""
    from tasks.steps.load_backbone import identify
    from tasks.steps.read_questions import questions_content
    from tasks.steps.read_texts import SECTIONS, source_content

    data = {}
    for section in (*SECTIONS, *["recovery"] * (params.recovery.method != "none")):
        settings = getattr(params.data, section)
        of_questions = getattr(settings, "form", "text") == "questions"
        data[section] = (questions_content if of_questions else source_content)(settings.source)
    data |= {f"questions.{each.name}": questions_content(each.source) for each in params.data.questions}
    flat = params.flat()
    named = {key: source_content(flat[key]) for key in FILES if flat.get(key) is not None}
    return {"backbone": identify(params.backbone.source, params.backbone.revision), "data": data, "parameters": named}


def last_run(store: Store, params: Parameters, flow: str) -> Artifact | None:
    """Record of the latest run with the same identity, in the store or its remote.

    Raises:
        DamagedError: the record is there, but damaged.
    """
    return store.recall(digest(run_identity(params, flow)))


def keep_record(
    params: Parameters,
    store: Store,
    flow: str,
    *,
    artifacts: Mapping[str, Artifact | list[Artifact]],
    executions: Iterable[Execution],
    spent: Span,
    places: Sequence[Path] | None = None,
    numbers: Mapping[str, float] | None = None,
    in_mlflow: bool = True,
) -> Artifact:
    """Seal the record of a run that has published its results, store it, sign it if there is a key, and publish it next to the results.

    With a read-only store, a run that executes nothing still gets its results; then the record is published only.

    Args:
        artifacts: everything that the run made or used, by stage.
        executions: its steps, whose cache keys lead to the inputs of each.
        places: the published files and folders; by default those of `flows.compress`.
        numbers: metrics in MLflow, unless they follow from the published files.
        in_mlflow: whether the run is recorded in MLflow.

    Raises:
        InputError: `store.signing_key` cannot sign.
    """
    identity = run_identity(params, flow)
    key, keys = digest(identity), keys_by(executions)
    stages = {stage: [given] if isinstance(given, Artifact) else given for stage, given in artifacts.items()}
    record = {
        "flow": flow,
        "key": key,
        "start": spent.start.isoformat(),
        "end": (spent.start + timedelta(seconds=spent.seconds)).isoformat(),
        "seconds": spent.seconds,
        "parameters": params.flat(),
        "presets": mask_values({"cases": params.cases, "methods": params.methods}),
        "sources": identity["sources"],
        "artifacts": {stage: [full_name(each) for each in those] for stage, those in stages.items()},
        "keys": {full_name(artifact): step_key for artifact, step_key in keys.items()},
        "published": published_files(params, places_of(params) if places is None else places),
        "folders": sorted(
            each.relative_to(params.folder).as_posix() for each in places or places_of(params) if each.is_dir()
        ),
        "numbers": None if numbers is None else dict(numbers),
        "in_mlflow": in_mlflow,
        "steps": usage_of(executions),
        "lineage": lineage_digest(store, stages, keys),
        "code": identity["code"],
        **environment.origin(),
        "tags": run_facts(),
        "user": user_name(),
    }
    content = format_json(record)
    if os.access(store.path, os.W_OK, effective_ids=True):
        shared = {field: record[field] for field in ("code", "git", "versions", "device", "start", "end", "seconds")}
        inputs = {stage: manifest_input(those) for stage, those in stages.items()}
        manifest = {
            "task": flow,
            "key": key,
            "inputs": inputs,
            "parameters": identity["parameters"],
            **shared,
            "facts": {},
        }
        with store.draft_folder(KIND) as out:
            (out / RECORD).write_bytes(content)
            store.remember(key, store.seal(out, KIND, manifest), identity)
    else:
        logger.warning(
            "The store %s cannot be written: the record of the run is stored next to its results only.", store.path
        )
    publish_file(place_of(params.results, flow), content)
    run = digest_of(content)
    if params.store.signing_key is not None and store.path_of(run).is_dir():
        sign(store, run, Path(params.store.signing_key))
    return run


def place_of(results: Path, flow: str) -> Path:
    """Path where the record of the last run of a flow is published: `record.json` for `flows.compress`, `<flow>.record.json` for others."""
    return results / (RECORD if flow == "compress" else f"{flow}.{RECORD}")


def places_of(params: Parameters) -> list[Path]:
    """Files and folders that `flows.compress` publishes."""
    searched = [params.results / "search"] * (params.search.method != "none")
    return [params.folder / params.output.checkpoint, *(params.results / given for given in PUBLISHED), *searched]


def lineage_digest(store: Store, stages: Mapping[str, list[Artifact]], keys: Mapping[Artifact, str]) -> str:
    """sha256 of the lineage of a run, as MLflow keeps it (`lineage.json`)."""
    return digest(describe_lineage(store, [each for made in stages.values() for each in made], keys))


def user_name() -> str:
    """Name of the user according to the machine; empty if it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def published_files(params: Parameters, places: Iterable[Path]) -> dict[str, str]:
    """sha256 of every published file of the run, by its path below the folder of `params.yaml`."""
    paths = sorted(path for place in places for path in (place, *place.rglob("*")) if path.is_file())
    manifests = {path.parent for path in paths if path.name == MANIFEST}
    sealed = {
        folder / file: entry["sha256"] for folder in manifests for file, entry in read_manifest(folder)["files"].items()
    }
    return {
        path.relative_to(params.folder).as_posix(): sealed.get(path) or file_digest(path, path.stat()) for path in paths
    }


def read_record(store: Store, run: Artifact) -> dict[str, Any]:
    """Read the record of a run; raises `DamagedError`."""
    return parse_record((store.folder(run) / RECORD).read_bytes(), run)


def parse_record(content: bytes, where: object) -> dict[str, Any]:
    """Parse the bytes of a record and check its form.

    Raises:
        DamagedError: the content is not what `keep_record` writes, or names a path outside the project.
    """
    try:
        record: dict[str, Any] = json.loads(content)
        RecordShape.model_validate(record)
        artifacts_of(record), keys_of(record)
    except (ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DamagedError(
            f"{where} is no record of a run ({reason}): it was altered; write it again with `dvc checkout`, or run again."
        ) from error
    return record


class RecordShape(BaseModel):
    """Minimal form of a record, of whichever version."""

    model_config = ConfigDict(strict=True)

    flow: str
    key: str
    end: str
    parameters: dict[str, Any]
    sources: dict[str, dict[str, Any]]
    artifacts: dict[str, list[str]]
    keys: dict[str, str]
    published: dict[str, str]
    git: dict[str, Any]
    versions: dict[str, Any]
    tags: dict[str, str]

    @field_validator("published")
    @classmethod
    def _inside(cls, value: dict[str, str]) -> dict[str, str]:
        if escaping := next((name for name in value if ".." in name.split("/") or name.startswith("/")), None):
            raise ValueError(f"published has {escaping!r}, expected paths below the project")
        return value


def artifacts_of(record: Mapping[str, Any]) -> dict[str, list[Artifact]]:
    """Everything that a run made or used, by stage."""
    return {stage: [Artifact(*each.split("/")) for each in those] for stage, those in record["artifacts"].items()}


def keys_of(record: Mapping[str, Any]) -> dict[Artifact, str]:
    """Cache key by which a run obtained each of its artifacts."""
    return {Artifact(*each.split("/")): key for each, key in record["keys"].items()}


def digest_of(content: bytes) -> Artifact:
    """Run that a record belongs to, by the bytes of the record."""
    return Artifact(KIND, content_digest(KIND, {RECORD: hashlib.sha256(content).hexdigest()}))


def md5(content: bytes) -> str:
    """MD5 of a file's content, by which DVC identifies it."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
