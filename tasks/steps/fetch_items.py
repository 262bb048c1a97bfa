"""Step 3c, fetch items: those of the standard zero-shot tasks from the Hub, a file per task as a user would give them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tasks.artifacts.files import CARD, write_table
from tasks.artifacts.specs import HubItems
from tasks.cache.artifact import Store
from tasks.cache.step import step
from tasks.data.hub_datasets import read_all


@step(kind="items")
def fetch_items(out: Path, store: Store, *, items: Mapping[str, HubItems]) -> None:
    """Write `<task>.jsonl` for every task, and where each is from."""
    for task, each in items.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in read_all(**asdict(each))]
        (out / f"{task}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    write_table(out / CARD, {task: asdict(each) for task, each in items.items()})
