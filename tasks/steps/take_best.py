"""The last step of a search, take best: the ranks of the trial with the least objective, with the whole search as their ancestry."""

from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.files import RANKS, RATIOS, SEARCH, TRIAL, table, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="ranks")
def take_best(
    out: Path, store: Store, trials: Sequence[Artifact], ranks: Sequence[Artifact], proposals: Sequence[Artifact]
) -> None:
    """Ranks and ratios of the best trial (the first of equals), and the objectives of all.

    Args:
        trials, ranks: of those that were measured, in order.
        proposals: of all, those included that failed.
    """
    objectives = [table(store, trial, TRIAL)["objective"] for trial in trials]
    best = objectives.index(min(objectives))
    for name in (RANKS, RATIOS):
        write_table(out / name, table(store, ranks[best], name))
    write_table(out / SEARCH, {"best": best, "objectives": objectives})
