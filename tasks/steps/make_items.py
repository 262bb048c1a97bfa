"""Step 3b, make items: the two zero-shot tasks that any evaluation text can give (`demo.tasks`)."""

from pathlib import Path

from demo import tasks as made
from tasks.artifacts.files import texts_of
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="items")
def make_items(out: Path, store: Store, texts: Artifact) -> None:
    """Write `last_word.jsonl` and `continuation.jsonl` from the evaluation documents."""
    made.write(texts_of(store, texts, "evaluation"), out)
