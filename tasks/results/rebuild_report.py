"""Subject of a report, rebuilt from the record of a run and the store: identical to the one when the run was published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgaa.errors import InputError
from tasks.artifacts.allocation_table import allocation_table
from tasks.cache.artifact import Artifact, Store
from tasks.record.run_record import artifacts_of, keys_of, read_record
from tasks.results.publish import DENSE, Compressed, Evaluated, Results, collect_metrics
from tasks.results.report import Subject

MANY = ("factors", "scores", "untuned", "searched")
"""Stages of which a model may have several artifacts."""


def restore_subject(store: Store, run: Artifact, *, blind: str) -> Subject:
    """Rebuild the subject of a report.

    Args:
        run: the record of a run of `flows.compress`.
        blind: warning for a vision-language model that was calibrated on text.

    Raises:
        InputError: the record belongs to another flow.
        DamagedError: an artifact is missing or damaged.
    """
    record = read_record(store, run)
    if record["flow"] != "compress":
        raise InputError(
            f"{run} is the record of flows.{record['flow']}, expected one of flows.compress: name another."
        )
    artifacts = artifacts_of(record)
    results = results_of(artifacts, record["parameters"])
    allocations = {
        name: allocation_table(store, results.backbone, results.statistics, model.ratios, model.ranks)
        for name, model in results.models.items()
    }
    metrics = collect_metrics(store, results, place=Path(record["parameters"]["output.checkpoint"]))
    if "calibration" in metrics["card"] and record["parameters"]["data.calibration.form"] != "questions":
        metrics["card"]["calibration"]["warning"] = blind
    origin = {key: record[key] for key in ("git", "versions", "device", "code")}
    return Subject(store, record["parameters"], artifacts, keys_of(record), metrics, allocations, origin)


def results_of(artifacts: Mapping[str, list[Artifact]], parameters: Mapping[str, Any]) -> Results:
    """Results whose artifacts a record names by stage."""
    sets = [each["name"] for each in parameters["data.questions"]]

    def one(stage: str) -> Artifact:
        return artifacts[stage][0]

    def by_set(stage: str) -> dict[str, Artifact]:
        return dict(zip(sets, artifacts.get(stage, []), strict=False))

    def below(kind: str) -> dict[str, Artifact]:
        return {stage.removeprefix(f"{kind}."): one(stage) for stage in artifacts if stage.startswith(f"{kind}.")}

    def model(name: str) -> Compressed:
        ratios, ranks, checkpoint, measured = (
            one(f"{kind}.{name}") for kind in ("ratios", "ranks", "checkpoint", "metrics")
        )
        factors, scores, untuned, searched = (artifacts.get(f"{kind}.{name}", []) for kind in MANY)
        given = factors, checkpoint, measured, scores, untuned, searched
        return Compressed(ratios, ranks, *given, by_set(f"answers.{name}"))

    return Results(
        backbone=one("backbone"),
        texts=one("texts"),
        tokens=below("tokens"),
        statistics=one("statistics"),
        spectra=artifacts.get("spectra", []),
        dense=Evaluated(one(f"metrics.{DENSE}"), by_set(f"answers.{DENSE}")),
        models={name: model(name) for name in below("checkpoint")},
        questions=artifacts.get("questions", [None])[0],
        samples=below("samples"),
    )
