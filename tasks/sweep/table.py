"""The table of a sweep: one row per point, tidy, with everything that is known of it (`COLUMNS`)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.artifacts.files import MEASUREMENT, RANKS, backbone_record, table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.executions import Execution
from tasks.evaluation.bootstrap import Bootstrap, Interval, verdict
from tasks.sweep.points import Outcome

COLUMNS = {
    # where the point stands: methods by name, their options as text, both levels in a word, the compression asked for
    **{"point": "string", "backbone": "string", "factors": "string", "factors_options": "string"},
    **{"ratios": "string", "ratios_options": "string", "ranks": "string", "ranks_options": "string"},
    **{"allocation": "string", "compression": "float64"},
    # what was removed of the linears, what is left of them, what was allowed, and left unused; size of the whole model
    **{"reached": "float64", "linear_parameters": "Int64", "budget": "Int64", "slack": "Int64"},
    **{"parameters": "Int64", "bytes": "Int64"},
    # log-perplexity in nats with its interval (tasks/evaluation/bootstrap.py), and the same less that of the dense model on the same
    # windows
    **{"perplexity": "float64", "nll": "float64", "nll_low": "float64", "nll_high": "float64"},
    **{"above_dense": "float64", "above_dense_low": "float64", "above_dense_high": "float64"},
    # less that of the reference, which has the same factorizer and compression and is uniform on both levels
    **{"reference": "string", "difference": "float64", "difference_low": "float64", "difference_high": "float64"},
    "verdict": "string",
    # share of right answers to all questions about images with its interval, and the same less that of the reference
    **{"accuracy": "float64", "accuracy_low": "float64", "accuracy_high": "float64"},
    **{"accuracy_difference": "float64", "accuracy_difference_low": "float64", "accuracy_difference_high": "float64"},
    # of the evaluation, whenever it ran; of everything else of the point in this run
    **{"evaluation_seconds": "float64", "seconds": "float64"},
    # measured, or failed and why
    **{"status": "string", "error": "string"},
}


def row(store: Store, backbone: Artifact, outcome: Outcome, executions: Iterable[Execution]) -> dict[str, Any]:
    """What is known of a point by itself; `executions` tell whether its evaluation ran in this run or in an earlier one."""
    found = {"point": outcome.point.name, **outcome.point.coordinates()}
    if outcome.measured is None:
        return {**found, "status": "failed", "error": " ".join(str(outcome.error).split())}
    given = outcome.measured
    ranks, measured = table(store, given.ranks, RANKS), table(store, given.measurement, MEASUREMENT)
    evaluation = store.manifest(given.measurement)["facts"]["evaluation_seconds"]
    fresh = any(each.artifact == given.measurement and not each.reused for each in executions)
    kept = ranks["linear_parameters"]
    return {
        **found,
        "reached": 1 - kept / backbone_record(store, backbone)["linear_parameters"],
        "linear_parameters": kept,
        "budget": ranks["budget"],
        "slack": ranks["budget"] - kept,
        **{name: measured[name] for name in ("parameters", "bytes", "perplexity", "nll")},
        "evaluation_seconds": evaluation,
        "seconds": given.seconds - (evaluation if fresh else 0.0),
        "status": "measured",
    }


def comparisons(store: Store, dense: Artifact, outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """The columns of every measured point that compare it with others of its backbone, by its name."""
    windows = table(store, dense, MEASUREMENT)
    bootstrap = Bootstrap(windows["counts"])
    points = {each.point.name: each.point for each in outcomes if each.measured is not None}
    losses = {
        each.point.name: table(store, each.measured.measurement, MEASUREMENT)["losses"]
        for each in outcomes
        if each.measured is not None
    }
    answers = {
        each.point.name: [
            float(right) for right in table(store, each.measured.measurement, MEASUREMENT).get("correct", [])
        ]
        for each in outcomes
        if each.measured is not None
    }
    even: dict[Any, str] = {}
    for name, point in points.items():
        if point.even:
            even.setdefault(point.setting, name)
    found: dict[str, dict[str, Any]] = {}
    for name, point in points.items():
        found[name] = columns("nll", bootstrap.nll(losses[name]))
        found[name] |= columns("above_dense", bootstrap.difference(losses[name], windows["losses"]))
        if (reference := even.get(point.setting)) is not None:
            difference = bootstrap.difference(losses[name], losses[reference])
            found[name] |= {"reference": reference, "verdict": verdict(difference), **columns("difference", difference)}
        if right := answers.get(name):
            over = Bootstrap([1] * len(right))
            found[name] |= columns("accuracy", over.nll(right))
            if reference is not None:
                found[name] |= columns("accuracy_difference", over.difference(right, answers[reference]))
    return found


def columns(name: str, interval: Interval) -> dict[str, float]:
    """A value and the ends of its interval."""
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """What was measured at a point, as metrics."""
    return {name: value for name, value in found.items() if name != "compression" and COLUMNS[name] != "string"}


def frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The rows as a `pandas.DataFrame`, with the same columns whatever happened."""
    from pandas import DataFrame

    return DataFrame(rows, columns=[*COLUMNS]).astype(COLUMNS)
