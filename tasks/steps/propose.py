"""The step of a search, propose: the points to try next, given the trials before (`mgaa.search.optimizer`).

A proposal is cached like everything else, so an interrupted search resumes with the very points that it had chosen, even where another
machine would round them differently.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts.files import PROPOSAL, TRIAL, read_table, write_table
from tasks.artifacts.specs import OptimizerSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="proposal", task_run_name="propose-{first}")
def propose(
    out: Path,
    store: Store,
    trials: Sequence[Artifact],
    *,
    points: list[list[float]],
    failed: list[list[float]],
    earlier: list[dict[str, Any]],
    optimizer: OptimizerSpec,
    first: int,
    count: int,
) -> dict[str, Any]:
    """The points of the trials from `first` on.

    Args:
        trials: that were measured, in order; `points` are theirs, `failed` those of the ones that were not.
        earlier: trials of an earlier search, each with `point` and `objective`.
        count: number of points.
    """
    from mgaa.search.optimizer import Found
    from mgaa.search.optimizer import propose as next_points

    values = [read_table(store, each, TRIAL)["objective"] for each in trials]
    known = Found(
        [*(each["point"] for each in earlier), *points], [*(each["objective"] for each in earlier), *values], failed
    )
    began = time.perf_counter()
    chosen = next_points(
        optimizer.method,
        known,
        dimensions=optimizer.dimensions,
        first=first,
        count=count,
        seed=optimizer.seed,
        initial=max(0, optimizer.initial - len(earlier)),  # known trials take the place of random ones
        start=optimizer.start,
    )
    write_table(out / PROPOSAL, {"points": chosen})
    return {"proposal_seconds": time.perf_counter() - began}
