"""What calibrates, read from an artifact `tokens`: windows of text, or prompts with images."""

from typing import Any

from tasks.artifact import Artifact, Store
from tasks.records import PROMPTS, token_windows


def sequences_of(store: Store, tokens: Artifact) -> Any:
    """Windows of text (sequences, length), or `mgaa.prompts.Prompts`."""
    from mgaa.prompts import Prompts

    path = store.folder(tokens) / PROMPTS
    return Prompts.load(path) if path.exists() else token_windows(store, tokens)
