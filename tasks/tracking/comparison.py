"""Runs of one experiment side by side: the parameters in which they differ, and what they measured.

A run is named by its id or the beginning of it, by its name, or by the number or alias of the version that it registered.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mgaa.errors import UsageError
from tasks.config.parameters import PathSections
from tasks.tracking.backend import connect, find_runs, translate_store_errors
from tasks.tracking.promotion import versions_of

if TYPE_CHECKING:
    from mlflow.entities import Run

NEWEST = 8
"""Number of runs that are compared if none is named."""
FINISHED = "attributes.status = 'FINISHED'"
PARENT = "mlflow.parentRunId"


def compare(params: PathSections, wanted: Sequence[str] = ()) -> dict[str, Any]:
    """Compare the `wanted` runs, or the newest that have finished: `{runs, parameters: {key: [...]}, metrics: {key: [...]}}`.

    Each list has a value per run, None if the run has none. Parameters that are equal in all runs are left out.

    Raises:
        UsageError: a word names no run, or several.
        ResourceError: the tracking store cannot be reached.
    """
    with translate_store_errors(params.tracking_uri):
        runs = choose_runs(params, wanted)
    parameters = {key: [run.data.params.get(key) for run in runs] for key in keys(run.data.params for run in runs)}
    measured = {key: [run.data.metrics.get(key) for run in runs] for key in keys(run.data.metrics for run in runs)}
    return {
        "runs": [{"id": run.info.run_id, "name": run.info.run_name, "start": run.info.start_time} for run in runs],
        "parameters": {key: values for key, values in parameters.items() if len(set(values)) > 1},
        "metrics": measured,
    }


def choose_runs(params: PathSections, wanted: Sequence[str]) -> list["Run"]:
    """Runs that the words name, in their order; without words the newest ones, oldest first."""
    client, experiment = connect(params)
    if not wanted:
        finished = [run for run in find_runs(client, experiment, FINISHED) if PARENT not in run.data.tags]
        if not finished:
            raise UsageError(
                f"tracking.experiment {params.tracking.experiment!r} has no finished run: expected one; run `python -m flows.compress`."
            )
        return finished[:NEWEST][::-1]
    runs = find_runs(client, experiment)
    by_version: dict[str, str] = {}
    if params.registry.model is not None:
        for version in versions_of(client, params.registry.model):
            by_version |= {str(version.number): version.run} | dict.fromkeys(version.aliases, version.run)
    return [client.get_run(by_version[word]) if word in by_version else match_run(runs, word) for word in wanted]


def match_run(runs: Sequence["Run"], word: str) -> "Run":
    """Find the run of an id, of the beginning of one, or of a name."""
    matches = [run for run in runs if run.info.run_name == word]
    if re.fullmatch(r"[0-9a-f]{4,32}", word):
        matches += [run for run in runs if run.info.run_id.startswith(word)]
    if len(matches) == 1:
        return matches[0]
    near = ", ".join(f"{run.info.run_id[:8]} ({run.info.run_name})" for run in (matches or runs)[:NEWEST])
    raise UsageError(
        f"{word!r} means {len(matches)} runs: expected the beginning of one id, a name that comes once, or with registry.model a version "
        f"or an alias; there are {near or 'no runs'}."
    )


def keys(tables: Iterable[dict[str, Any]]) -> list[str]:
    """Keys of all tables, sorted."""
    return sorted({key for table in tables for key in table})
