"""Table of a study: the best allocation of every search on the evaluation text, compared with the dense model and MGAA.

Zero-shot tasks cost more than a perplexity, so they are run for one seed of every kind of search, the one with the least objective.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.files import MEASUREMENT, METRICS, RANKS, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import publish_file
from tasks.evaluation.bootstrap import Bootstrap, verdict
from tasks.search.trials import Search, best_objective

COLUMNS = {
    **{"search": "string", "method": "string", "groups": "Int64", "start": "string", "seed": "Int64"},
    **{"evaluations": "Int64", "failed": "Int64", "objective": "float64", "linear_parameters": "Int64"},
    # perplexity of the evaluation text; difference in log-perplexity from the dense model, and from MGAA on the same windows
    **{"perplexity": "float64", "above_dense": "float64"},
    **{"above_mgaa": "float64", "above_mgaa_low": "float64", "above_mgaa_high": "float64", "verdict": "string"},
    # seconds of all trials: evaluating, proposing, in total
    **{"evaluation_seconds": "float64", "proposal_seconds": "float64", "seconds": "float64"},
}
NAME = "study.csv"
TASK = "task/"
"""Prefix of the columns of zero-shot tasks, which depend on the run."""


@dataclass(frozen=True)
class Final:
    """A model on the evaluation text: the dense one (no ranks), MGAA (no search), or the best of a search; with `metrics` if tasks were
    run.
    """

    name: str
    search: Search | None
    ranks: Artifact | None
    measurement: Artifact
    metrics: Artifact | None = None


def table_of(store: Store, finals: Sequence[Final]) -> list[dict[str, Any]]:
    """Rows of the table, with the keys of `COLUMNS`: the dense model first, then MGAA if it could be measured, then the searches."""
    read = [read_table(store, final.measurement, MEASUREMENT) for final in finals]
    dense, mgaa = read[0], next((each for final, each in zip(finals, read, strict=True) if final.name == "mgaa"), None)
    bootstrap = Bootstrap(dense["counts"])
    rows = []
    for final, measured in zip(finals, read, strict=True):
        row = {
            "search": final.name,
            **search_columns(store, final.search),
            "linear_parameters": None
            if final.ranks is None
            else read_table(store, final.ranks, RANKS)["linear_parameters"],
            "perplexity": measured["perplexity"],
            "above_dense": measured["nll"] - dense["nll"],
        }
        if final.search is not None and mgaa is not None:
            difference = bootstrap.difference(measured["losses"], mgaa["losses"])
            row |= {
                "above_mgaa": difference.value,
                "above_mgaa_low": difference.low,
                "above_mgaa_high": difference.high,
            }
            row["verdict"] = verdict(difference)
        rows.append({name: row.get(name) for name in COLUMNS} | task_columns(store, final.metrics))
    return rows


def task_columns(store: Store, metrics: Artifact | None) -> dict[str, float]:
    """Accuracy of every task that was run."""
    if metrics is None:
        return {}
    return {f"{TASK}{name}": score["acc"] for name, score in read_table(store, metrics, METRICS)["tasks"].items()}


def best_searches(store: Store, searches: Sequence[Search]) -> list[Search]:
    """The search with the least objective of every kind."""
    best: dict[tuple[str, int, str], Search] = {}
    for each in searches:
        kind = (each.method, each.groups, each.start)
        if kind not in best or best_objective(store, each) < best_objective(store, best[kind]):
            best[kind] = each
    return [*best.values()]


def search_columns(store: Store, search: Search | None) -> dict[str, Any]:
    """Settings and cost of a search."""
    if search is None:
        return {}
    seconds = [store.manifest(each)["facts"]["evaluation_seconds"] for each in search.measured_trials]
    return {
        **{name: getattr(search, name) for name in ("method", "groups", "start", "seed")},
        "evaluations": len(search.trials),
        "failed": len(search.trials) - len(search.measured_trials),
        "objective": best_objective(store, search),
        "evaluation_seconds": sum(seconds),
        "proposal_seconds": sum(trial.proposing for trial in search.trials),
        "seconds": sum(trial.tried.seconds + trial.proposing for trial in search.trials),
    }


def write_study(folder: Path, store: Store, finals: Sequence[Final]) -> None:
    """Write the table as `study.csv`."""
    from pandas import DataFrame

    frame = DataFrame(table_of(store, finals)).astype(COLUMNS)
    publish_file(folder / NAME, frame.to_csv(index=False).encode())
