"""The table of a study: what the best allocation of every search is worth on the evaluation text, beside the dense model and MGAA.

Zero-shot tasks cost more than a perplexity, so of every kind of search they are run for one seed, that of the least objective.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.files import MEASUREMENT, METRICS, RANKS, table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import publish_file
from tasks.evaluation.bootstrap import Bootstrap, verdict
from tasks.search.trials import Search, least

COLUMNS = {
    **{"search": "string", "method": "string", "groups": "Int64", "start": "string", "seed": "Int64"},
    **{"evaluations": "Int64", "failed": "Int64", "objective": "float64", "linear_parameters": "Int64"},
    # perplexity of the evaluation text; log-perplexity less that of the dense model, and less that of MGAA on the same windows
    **{"perplexity": "float64", "above_dense": "float64"},
    **{"above_mgaa": "float64", "above_mgaa_low": "float64", "above_mgaa_high": "float64", "verdict": "string"},
    # of all trials: evaluating, proposing, and everything
    **{"evaluation_seconds": "float64", "proposal_seconds": "float64", "seconds": "float64"},
}
NAME = "study.csv"
TASK = "task/"
"""Before the names of the columns of zero-shot tasks, which depend on the run."""


@dataclass(frozen=True)
class Final:
    """A model on the evaluation text: the dense one (no ranks), MGAA (no search), or the best of a search; `metrics` if tasks were run."""

    name: str
    search: Search | None
    ranks: Artifact | None
    measurement: Artifact
    metrics: Artifact | None = None


def table_of(store: Store, finals: Sequence[Final]) -> list[dict[str, Any]]:
    """A row for every model, with the keys of `COLUMNS`; the dense model comes first, then MGAA if it could be measured."""
    read = [table(store, final.measurement, MEASUREMENT) for final in finals]
    dense, mgaa = read[0], next((each for final, each in zip(finals, read, strict=True) if final.name == "mgaa"), None)
    bootstrap = Bootstrap(dense["counts"])
    rows = []
    for final, measured in zip(finals, read, strict=True):
        row = {
            "search": final.name,
            **of_search(store, final.search),
            "linear_parameters": None if final.ranks is None else table(store, final.ranks, RANKS)["linear_parameters"],
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
        rows.append({name: row.get(name) for name in COLUMNS} | of_tasks(store, final.metrics))
    return rows


def of_tasks(store: Store, metrics: Artifact | None) -> dict[str, float]:
    """The accuracy of every task that was run."""
    if metrics is None:
        return {}
    return {f"{TASK}{name}": score["acc"] for name, score in table(store, metrics, METRICS)["tasks"].items()}


def chosen(store: Store, searches: Sequence[Search]) -> list[Search]:
    """Of every kind of search the one with the least objective."""
    found: dict[tuple[str, int, str], Search] = {}
    for each in searches:
        kind = (each.method, each.groups, each.start)
        if kind not in found or least(store, each) < least(store, found[kind]):
            found[kind] = each
    return [*found.values()]


def of_search(store: Store, search: Search | None) -> dict[str, Any]:
    """What a search is and what it cost."""
    if search is None:
        return {}
    seconds = [store.manifest(each)["facts"]["evaluation_seconds"] for each in search.measured]
    return {
        **{name: getattr(search, name) for name in ("method", "groups", "start", "seed")},
        "evaluations": len(search.trials),
        "failed": len(search.trials) - len(search.measured),
        "objective": least(store, search),
        "evaluation_seconds": sum(seconds),
        "proposal_seconds": sum(trial.proposing for trial in search.trials),
        "seconds": sum(trial.tried.seconds + trial.proposing for trial in search.trials),
    }


def write(folder: Path, store: Store, finals: Sequence[Final]) -> None:
    """Write the table as `study.csv`."""
    from pandas import DataFrame

    frame = DataFrame(table_of(store, finals)).astype(COLUMNS)
    publish_file(folder / NAME, frame.to_csv(index=False).encode())
