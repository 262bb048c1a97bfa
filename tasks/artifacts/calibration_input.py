"""Calibration sequences of an artifact `tokens`: windows of text, or prompts with images."""

from typing import Any

from tasks.artifacts.files import PROMPTS, token_windows
from tasks.cache.artifact import Artifact, Store


def sequences_of(store: Store, tokens: Artifact) -> Any:
    """Windows of text (sequences, length), or `mgaa.inputs.prompts.Prompts`."""
    from mgaa.inputs.prompts import Prompts

    path = store.folder(tokens) / PROMPTS
    return Prompts.load(path) if path.exists() else token_windows(store, tokens)
