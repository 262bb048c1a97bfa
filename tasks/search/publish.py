"""Published files of searches: `results/search/`, written atomically.

search.json        every trial of every search with its identity; read by `search.history`
trials.csv         the trials as a table
allocation.json    the best allocation of every search, the best of all last; read by `ranks.method=file`
best.png, .svg     the best value so far against the number of evaluations
ranks.png, .svg    the best allocation as a heat map, next to MGAA's
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.allocation_table import allocation_table
from tasks.artifacts.files import TRIAL, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import replace_folder, write_file
from tasks.cache.manifest import format_json
from tasks.figures.run_figures import ranks as heat_map
from tasks.figures.style import figure_style, save_figure
from tasks.search.figure import best_so_far
from tasks.search.trials import Search, best_objective, search_state

FOLDER = "results/search"
COLUMNS = {
    **{"search": "string", "method": "string", "groups": "Int64", "start": "string", "seed": "Int64", "trial": "Int64"},
    **{"objective": "float64", "best": "float64", "perplexity": "float64", "divergence": "float64"},
    **{"seconds": "float64", "evaluation_seconds": "float64", "proposal_seconds": "float64", "error": "string"},
}
"""Columns of trials.csv; `best` is the least objective up to this trial."""


@dataclass(frozen=True)
class MgaaBaseline:
    """MGAA, which needs no trials, measured like a trial; `error` says why it could not be."""

    ratios: Artifact
    ranks: Artifact
    trial: Artifact | None
    error: str = ""


def publish_search(
    folder: Path, store: Store, statistics: Artifact, searches: Sequence[Search], mgaa: MgaaBaseline
) -> dict[str, Any]:
    """Write the files below `folder`; returns the content of search.json."""
    baseline: dict[str, Any] = (
        {"error": mgaa.error} if mgaa.trial is None else without_losses(read_table(store, mgaa.trial, TRIAL))
    )
    state = {"searches": search_state(store, searches), "mgaa": baseline}
    backbone = searches[0].context.backbone
    ordered = sorted(searches, key=lambda each: best_objective(store, each), reverse=True)
    allocations = {"mgaa": allocation_table(store, backbone, statistics, mgaa.ratios, mgaa.ranks)}
    allocations |= {each.name: allocation_table(store, backbone, statistics, each.best, each.best) for each in ordered}
    rows = frame(state["searches"])
    with replace_folder(folder / FOLDER) as out, figure_style():
        write_file(out / "search.json", format_json(state))
        write_file(out / "allocation.json", format_json(allocations))
        rows.to_csv(out / "trials.csv", index=False)
        save_figure(best_so_far(rows, baseline.get("objective")), out / "best")
        shown = {name: allocations[name] for name in ("mgaa", ordered[-1].name)}
        save_figure(heat_map(shown), out / "ranks")
    return state


def without_losses(trial: dict[str, Any]) -> dict[str, Any]:
    """Drop the losses of the windows from a measurement."""
    return {name: value for name, value in trial.items() if name != "losses"}


def frame(searches: dict[str, Any]) -> Any:
    """Trials as a `pandas.DataFrame`."""
    from pandas import DataFrame

    rows: list[dict[str, Any]] = []
    for name, search in searches.items():
        best = float("inf")
        for number, trial in enumerate(search["trials"]):
            best = min(best, trial.get("objective", best))
            own = {key: trial[key] for key in COLUMNS if key in trial}
            rows.append(
                {
                    "search": name,
                    **{key: search[key] for key in COLUMNS if key in search},
                    "trial": number,
                    "best": best,
                    **own,
                }
            )
    return DataFrame(rows, columns=[*COLUMNS]).astype(COLUMNS)
