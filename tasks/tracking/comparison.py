"""Runs of one experiment side by side: the parameters in which they differ, and what they measured.

A run is meant by its id or the beginning of it, by its name, or by the number or alias of the version that it registered.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mgaa.errors import UsageError
from tasks.config.parameters import Placed
from tasks.tracking.backend import connect, every, recorded
from tasks.tracking.promotion import versions_of

if TYPE_CHECKING:
    from mlflow.entities import Run

NEWEST = 8
"""Runs that are compared when none is named."""
FINISHED = "attributes.status = 'FINISHED'"
PARENT = "mlflow.parentRunId"


def compare(p: Placed, wanted: Sequence[str] = ()) -> dict[str, Any]:
    """The table of the `wanted` runs, or of the newest that have finished: `{runs, parameters: {key: [...]}, metrics: {key: [...]}}`.

    Each list has a value per run, null where the run has none. Parameters that are the same in all runs are left out.

    Raises:
        UsageError: a word means no run, or several.
        ResourceError: the tracking store cannot be reached.
    """
    with recorded(p.tracking_uri):
        found = chosen(p, wanted)
    parameters = {key: [run.data.params.get(key) for run in found] for key in keys(run.data.params for run in found)}
    measured = {key: [run.data.metrics.get(key) for run in found] for key in keys(run.data.metrics for run in found)}
    return {
        "runs": [{"id": run.info.run_id, "name": run.info.run_name, "start": run.info.start_time} for run in found],
        "parameters": {key: values for key, values in parameters.items() if len(set(values)) > 1},
        "metrics": measured,
    }


def chosen(p: Placed, wanted: Sequence[str]) -> list["Run"]:
    """The runs that the words mean, in their order; without words the newest, oldest first."""
    client, experiment = connect(p)
    if not wanted:
        finished = [run for run in every(client, experiment, FINISHED) if PARENT not in run.data.tags]
        if not finished:
            raise UsageError(
                f"tracking.experiment {p.tracking.experiment!r} has no finished run: expected one; run `python -m flows.compress`."
            )
        return finished[:NEWEST][::-1]
    runs = every(client, experiment)
    by_version: dict[str, str] = {}
    if p.registry.model is not None:
        for version in versions_of(client, p.registry.model):
            by_version |= {str(version.number): version.run} | dict.fromkeys(version.aliases, version.run)
    return [client.get_run(by_version[word]) if word in by_version else named(runs, word) for word in wanted]


def named(runs: Sequence["Run"], word: str) -> "Run":
    """The run of an id, of its beginning, or of a name."""
    found = [run for run in runs if run.info.run_name == word]
    if re.fullmatch(r"[0-9a-f]{4,32}", word):
        found += [run for run in runs if run.info.run_id.startswith(word)]
    if len(found) == 1:
        return found[0]
    near = ", ".join(f"{run.info.run_id[:8]} ({run.info.run_name})" for run in (found or runs)[:NEWEST])
    raise UsageError(
        f"{word!r} means {len(found)} runs: expected the beginning of one id, a name that comes once, or with registry.model a version "
        f"or an alias; there are {near or 'no runs'}."
    )


def keys(tables: Iterable[dict[str, Any]]) -> list[str]:
    """The keys of all tables, sorted."""
    return sorted({key for table in tables for key in table})
