"""Step 8b, collect ranks: the ranks of a model whose blocks were compressed one after the other, as one table."""

from collections.abc import Sequence
from pathlib import Path

from tasks.artifacts.files import RANKS, table, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="ranks")
def collect_ranks(out: Path, store: Store, factors: Sequence[Artifact]) -> None:
    """Join the tables of all blocks; the budget is that of the last, which counts all blocks before it."""
    blocks = [table(store, each, RANKS) for each in factors]
    write_table(
        out / RANKS,
        {
            "budget": blocks[-1]["budget"],
            "linear_parameters": sum(block["linear_parameters"] for block in blocks),
            "channels": blocks[-1]["channels"],
            **{name: blocks[-1][name] for name in ("latency",) if name in blocks[-1]},
            "matrices": {name: each for block in blocks for name, each in block["matrices"].items()},
        },
    )
