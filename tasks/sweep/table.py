"""Table of a sweep: one row per point, tidy, with everything that is known of it (`COLUMNS`)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.artifacts.files import MEASUREMENT, RANKS, backbone_record, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.executions import Execution
from tasks.evaluation.bootstrap import Bootstrap, Interval, verdict
from tasks.sweep.points import Outcome

COLUMNS = {
    # coordinates: methods by name, their options as text, both levels in a word, the requested compression
    **{"point": "string", "backbone": "string", "factors": "string", "factors_options": "string"},
    **{"ratios": "string", "ratios_options": "string", "ranks": "string", "ranks_options": "string"},
    **{"allocation": "string", "compression": "float64"},
    # linear layers: fraction removed, parameters left, budget and its unused part; size of the whole model
    **{"reached": "float64", "linear_parameters": "Int64", "budget": "Int64", "slack": "Int64"},
    **{"parameters": "Int64", "bytes": "Int64"},
    # log-perplexity in nats with its interval (tasks/evaluation/bootstrap.py), and its difference from the dense model on the same windows
    **{"perplexity": "float64", "nll": "float64", "nll_low": "float64", "nll_high": "float64"},
    **{"above_dense": "float64", "above_dense_low": "float64", "above_dense_high": "float64"},
    # difference from the reference, which has the same factorizer and compression and is uniform on both levels
    **{"reference": "string", "difference": "float64", "difference_low": "float64", "difference_high": "float64"},
    "verdict": "string",
    # share of correct answers to all questions about images with its interval, and its difference from the reference
    **{"accuracy": "float64", "accuracy_low": "float64", "accuracy_high": "float64"},
    **{"accuracy_difference": "float64", "accuracy_difference_low": "float64", "accuracy_difference_high": "float64"},
    # seconds of the evaluation, whenever it ran; seconds of everything else of the point in this run
    **{"evaluation_seconds": "float64", "seconds": "float64"},
    # measured, or failed with the error
    **{"status": "string", "error": "string"},
}


def point_row(store: Store, backbone: Artifact, outcome: Outcome, executions: Iterable[Execution]) -> dict[str, Any]:
    """Row of a point by itself; `executions` tell whether its evaluation ran in this run or in an earlier one."""
    row = {"point": outcome.point.name, **outcome.point.coordinates()}
    if outcome.measured is None:
        return {**row, "status": "failed", "error": " ".join(str(outcome.error).split())}
    point = outcome.measured
    ranks, measured = read_table(store, point.ranks, RANKS), read_table(store, point.measurement, MEASUREMENT)
    evaluation = store.manifest(point.measurement)["facts"]["evaluation_seconds"]
    fresh = any(each.artifact == point.measurement and not each.reused for each in executions)
    kept = ranks["linear_parameters"]
    return {
        **row,
        "reached": 1 - kept / backbone_record(store, backbone)["linear_parameters"],
        "linear_parameters": kept,
        "budget": ranks["budget"],
        "slack": ranks["budget"] - kept,
        **{name: measured[name] for name in ("parameters", "bytes", "perplexity", "nll")},
        "evaluation_seconds": evaluation,
        "seconds": point.seconds - (evaluation if fresh else 0.0),
        "status": "measured",
    }


def comparisons(store: Store, dense: Artifact, outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Columns that compare every measured point with others of its backbone, by the name of the point."""
    windows = read_table(store, dense, MEASUREMENT)
    bootstrap = Bootstrap(windows["counts"])
    points = {each.point.name: each.point for each in outcomes if each.measured is not None}
    losses = {
        each.point.name: read_table(store, each.measured.measurement, MEASUREMENT)["losses"]
        for each in outcomes
        if each.measured is not None
    }
    answers = {
        each.point.name: [
            float(right) for right in read_table(store, each.measured.measurement, MEASUREMENT).get("correct", [])
        ]
        for each in outcomes
        if each.measured is not None
    }
    uniform: dict[Any, str] = {}
    for name, point in points.items():
        if point.is_uniform:
            uniform.setdefault(point.setting, name)
    compared: dict[str, dict[str, Any]] = {}
    for name, point in points.items():
        compared[name] = columns("nll", bootstrap.nll(losses[name]))
        compared[name] |= columns("above_dense", bootstrap.difference(losses[name], windows["losses"]))
        if (reference := uniform.get(point.setting)) is not None:
            difference = bootstrap.difference(losses[name], losses[reference])
            compared[name] |= {
                "reference": reference,
                "verdict": verdict(difference),
                **columns("difference", difference),
            }
        if right := answers.get(name):
            over = Bootstrap([1] * len(right))
            compared[name] |= columns("accuracy", over.nll(right))
            if reference is not None:
                compared[name] |= columns("accuracy_difference", over.difference(right, answers[reference]))
    return compared


def columns(name: str, interval: Interval) -> dict[str, float]:
    """A value and the ends of its interval."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def point_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of a point."""
    return {name: value for name, value in row.items() if name != "compression" and COLUMNS[name] != "string"}


def frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as a `pandas.DataFrame`, with the same columns in every case."""
    from pandas import DataFrame

    return DataFrame(rows, columns=[*COLUMNS]).astype(COLUMNS)
