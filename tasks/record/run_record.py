"""The record of a run: one sealed artifact that names everything the run made, and everything it depended on.

A checkpoint's manifest leads to its ranks, statistics and texts; the record leads to all of them at once, with the parameters, the files of
the backbone and of the data by sha256, and the files that were published. The same bytes lie in the store (`run/<digest>/record.json`) and
beside the results (`results/record.json`, an out of DVC), so either is found from the other, and a revision of DVC from both.

It is remembered under the identity of the run, as the result of a step is under its key: whoever wants to know whether the same run was
made before asks for it (`last_run`), without a model or a text in memory.
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
    read_manifest,
    readable,
)
from tasks.cache.source import code_digest
from tasks.cache.stage import named
from tasks.config.parameters import Parameters, flatten
from tasks.record.lineage import lineage, name, run_facts
from tasks.record.signing import sign
from tasks.record.step_usage import usage_of

KIND = RUN
logger = logging.getLogger(__name__)
ELSEWHERE = {
    *("output", "sweep", "study", "sensitivity", "profile"),
    *("runner", "store", "tracking", "registry", "schedule"),
}
"""Sections that change no result of a run: where it computes and what it is kept in, and flows of their own."""
NUMBERS = ("metrics.json", "allocation.json")
PUBLISHED = (*NUMBERS, "report.html", "figures", "plots")
"""What a run leaves among its results, beside its record."""
PREPARED = "data/prepared"
"""Where the texts and questions are exported for DVC to version."""
SECTION = {"sweep": "sweep", "search": "study", "sensitivity": "sensitivity"}
"""The section of its own that the results of a flow depend on."""
FILES = ("ranks.profile", "ranks.path", "ratios.path", "search.history", "evaluation.tasks_folder")
"""Parameters that name files which are read."""


@dataclass(frozen=True)
class Span:
    """When a run started, and how many seconds it took by a clock that does not jump."""

    start: datetime
    seconds: float


def run_identity(p: Parameters, flow: str) -> dict[str, Any]:
    """Everything that the results of a run depend on; like a step's (tasks/cache/stage.py), but for all code and all numerical packages.

    The device is not looked at: `backbone.device` is a parameter, and where it is `auto` a GPU that came or went changes the keys of the
    steps only.

    Raises:
        InputError: the backbone or a file of the data is not there.
    """
    sections = p.model_dump(by_alias=True, exclude=ELSEWHERE - {SECTION.get(flow)})
    return {
        "task": flow,
        "kind": KIND,
        "parameters": mask_values(dict(flatten(sections))),
        "sources": sources(p),
        "code": code_digest(),
        **environment.environment(environment.NUMERICAL),
        "flags": {},
    }


def sources(p: Parameters) -> dict[str, Any]:
    """sha256 of every file that a run reads: of the backbone, of each section of the data, and of those that parameters name."""
    from tasks.steps.load_backbone import identify
    from tasks.steps.read_questions import questions_content
    from tasks.steps.read_texts import SECTIONS, source_content

    data = {}
    for section in (*SECTIONS, *["recovery"] * (p.recovery.method != "none")):
        given = getattr(p.data, section)
        asked = getattr(given, "form", "text") == "questions"
        data[section] = (questions_content if asked else source_content)(given.source)
    data |= {f"questions.{each.name}": questions_content(each.source) for each in p.data.questions}
    flat = p.flat()
    named = {key: source_content(flat[key]) for key in FILES if flat.get(key) is not None}
    return {"backbone": identify(p.backbone.source, p.backbone.revision), "data": data, "parameters": named}


def last_run(store: Store, p: Parameters, flow: str) -> Artifact | None:
    """The record of the latest run of the same identity, here or in the remote of the store.

    Raises:
        DamagedError: it is there, and damaged.
    """
    return store.recall(digest(run_identity(p, flow)))


def keep_record(
    p: Parameters,
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
    """Seal the record of a run that has published its results, remember it, sign it if there is a key, and publish it beside them.

    A store that cannot be written gives what it holds to a run that executes nothing; then the record is published only.

    Args:
        artifacts: everything that the run made or used, by stage.
        executions: its steps, whose keys say from what it had each of them.
        places: files and folders that it has published, by default those of `flows.compress`.
        numbers: what MLflow is told, where it does not follow from the files that are published.
        in_mlflow: whether the run is recorded there.

    Raises:
        InputError: `store.signing_key` cannot sign.
    """
    identity = run_identity(p, flow)
    key, keys = digest(identity), keys_by(executions)
    stages = {stage: [given] if isinstance(given, Artifact) else given for stage, given in artifacts.items()}
    told = {
        "flow": flow,
        "key": key,
        "start": spent.start.isoformat(),
        "end": (spent.start + timedelta(seconds=spent.seconds)).isoformat(),
        "seconds": spent.seconds,
        "parameters": p.flat(),
        "presets": mask_values({"cases": p.cases, "methods": p.methods}),
        "sources": identity["sources"],
        "artifacts": {stage: [name(each) for each in those] for stage, those in stages.items()},
        "keys": {name(artifact): key for artifact, key in keys.items()},
        "published": published(p, places_of(p) if places is None else places),
        "folders": sorted(each.relative_to(p.folder).as_posix() for each in places or places_of(p) if each.is_dir()),
        "numbers": None if numbers is None else dict(numbers),
        "in_mlflow": in_mlflow,
        "steps": usage_of(executions),
        "lineage": lineage_digest(store, stages, keys),
        "code": identity["code"],
        **environment.origin(),
        "tags": run_facts(),
        "user": user(),
    }
    content = readable(told)
    if os.access(store.path, os.W_OK, effective_ids=True):
        shared = {field: told[field] for field in ("code", "git", "versions", "device", "start", "end", "seconds")}
        inputs = {stage: named(those) for stage, those in stages.items()}
        manifest = {
            "task": flow,
            "key": key,
            "inputs": inputs,
            "parameters": identity["parameters"],
            **shared,
            "facts": {},
        }
        with store.writing(KIND) as out:
            (out / RECORD).write_bytes(content)
            store.remember(key, store.seal(out, KIND, manifest), identity)
    else:
        logger.warning(
            "The store %s cannot be written: the record of the run lies beside its results alone.", store.path
        )
    publish_file(place_of(p.results, flow), content)
    run = digest_of(content)
    if p.store.signing_key is not None and store.place(run).is_dir():
        sign(store, run, Path(p.store.signing_key))
    return run


def place_of(results: Path, flow: str) -> Path:
    """Where the record of the last run of a flow is published: `record.json` of `flows.compress`, `<flow>.record.json` of others."""
    return results / (RECORD if flow == "compress" else f"{flow}.{RECORD}")


def places_of(p: Parameters) -> list[Path]:
    """The files and folders that `flows.compress` publishes."""
    searched = [p.results / "search"] * (p.search.method != "none")
    return [p.folder / p.output.checkpoint, *(p.results / given for given in PUBLISHED), *searched]


def lineage_digest(store: Store, stages: Mapping[str, list[Artifact]], keys: Mapping[Artifact, str]) -> str:
    """sha256 of the lineage of a run, as MLflow keeps it (`lineage.json`)."""
    return digest(lineage(store, [each for made in stages.values() for each in made], keys))


def user() -> str:
    """The name of the user, as the machine knows it; empty where it does not."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def published(p: Parameters, places: Iterable[Path]) -> dict[str, str]:
    """sha256 of every file that the run has published, by its path below the folder of `params.yaml`."""
    paths = sorted(path for place in places for path in (place, *place.rglob("*")) if path.is_file())
    manifests = {path.parent for path in paths if path.name == MANIFEST}
    sealed = {
        folder / file: entry["sha256"] for folder in manifests for file, entry in read_manifest(folder)["files"].items()
    }
    return {path.relative_to(p.folder).as_posix(): sealed.get(path) or file_digest(path, path.stat()) for path in paths}


def read_record(store: Store, run: Artifact) -> dict[str, Any]:
    """The content of a record; raises `DamagedError`."""
    return parse_record((store.folder(run) / RECORD).read_bytes(), run)


def parse_record(content: bytes, where: object) -> dict[str, Any]:
    """The content of a record by its bytes, whoever wrote them.

    Raises:
        DamagedError: it is not what `keep_record` writes, or names a path outside the project.
    """
    try:
        record: dict[str, Any] = json.loads(content)
        Shape.model_validate(record)
        artifacts_of(record), keys_of(record)
    except (ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DamagedError(
            f"{where} is no record of a run ({reason}): it was altered; write it again with `dvc checkout`, or run again."
        ) from error
    return record


class Shape(BaseModel):
    """What a record has at least, of whichever version."""

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
    """The stage key under which a run had each of its artifacts."""
    return {Artifact(*each.split("/")): key for each, key in record["keys"].items()}


def digest_of(content: bytes) -> Artifact:
    """The run that a record belongs to, by its bytes."""
    return Artifact(KIND, content_digest(KIND, {RECORD: hashlib.sha256(content).hexdigest()}))


def md5(content: bytes) -> str:
    """By what DVC knows a file."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
