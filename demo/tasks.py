"""The demo's two zero-shot tasks, made from its own test documents, so that they run without a network.

`last_word` (after LAMBADA, Paperno et al. 2016): predict the last word of a sentence. As in most of LAMBADA the word occurs earlier in the
context, so that a small model can know it. `continuation` (after HellaSwag, Zellers et al. 2019): pick the true next words among four;
the other three come from other documents, continue a line in the same way and are matched in length, so that neither form nor length
gives them away.

Which passages become items is decided by the sha256 of the passage and the seed, not by a random number generator: the items are the
same under every Python version, and depend on no model. Documents take turns, so that a long one does not fill the task. Any English
text will do, tokenised (WikiText) or not. How items are scored is in `tasks/evaluation/definitions`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mgaa.errors import InputError

ITEMS = 250
"""Maximum number of items in a task: an accuracy of 0.5 then has a standard error of 0.03."""

FEWEST = 25
"""Number of items below which a task has no significance (standard error 0.1)."""

CONTEXT = 300
"""Maximum characters of context, about 40 words; it starts at a line if one starts in its first half, else at a word."""

WORDS = 6
"""Number of words in a continuation."""

POOL = 64
"""Number of candidates from which the three distractors nearest in length are taken."""

_LAST_WORD = re.compile(r"(?<=[a-z,]) ([a-z]{4,})(?= ?\.(?:\s|$))")
_NEXT_WORDS = re.compile(rf"(?<=[a-z,]) (?=([a-z]+(?:\s+\S+){{{WORDS - 1}}}))")


@dataclass(frozen=True)
class Passage:
    """A place in a document: the text before it and the text that follows."""

    document: int
    context: str
    following: str


def write(documents: Sequence[str], folder: Path, *, items: int = ITEMS, seed: int = 0) -> None:
    """Write `last_word.jsonl` and `continuation.jsonl` into `folder`.

    Raises:
        InputError: the documents are too few or too short.
    """
    for make in (last_word, continuation):
        lines = [json.dumps(item, ensure_ascii=False) for item in make(documents, items=items, seed=seed)]
        (folder / f"{make.__name__}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def last_word(documents: Sequence[str], *, items: int = ITEMS, seed: int = 0) -> list[dict[str, Any]]:
    """Make items `{context, target}`; the target occurs in the context as a word."""
    found = [
        each
        for each in _draw_passages(documents, _LAST_WORD, seed)
        if each.following in re.findall(r"[a-z]+", each.context)
    ]
    return [{"context": each.context, "target": each.following} for each in _spread(found, items, "last_word")]


def continuation(documents: Sequence[str], *, items: int = ITEMS, seed: int = 0) -> list[dict[str, Any]]:
    """Make items `{context, choices, label}` with four choices, one of them true."""
    found = _draw_passages(documents, _NEXT_WORDS, seed)
    made = []
    for index, passage in enumerate(_spread(found, items, "continuation")):
        choices = _distractors(passage, found, start=(index + 1) * POOL)
        label = int(_hash(passage.context, seed)[:8], 16) % 4
        choices.insert(label, passage.following)
        made.append({"context": passage.context, "choices": choices, "label": label})
    return made


def _draw_passages(documents: Sequence[str], pattern: re.Pattern[str], seed: int) -> list[Passage]:
    """All places where `pattern` matches after enough context, in an order that depends on the text and the seed alone."""
    found = {}
    for number, document in enumerate(documents):
        for match in pattern.finditer(document):
            passage = Passage(number, _context(document, match.start()), match[1])
            if len(passage.context) >= CONTEXT // 2:
                found[_hash(passage.context + passage.following, seed)] = passage
    return [found[key] for key in sorted(found)]


def _context(document: str, end: int) -> str:
    start = max(0, end - CONTEXT)
    if start > 0:
        line = document.find("\n", start, start + CONTEXT // 2)
        start = (line if line >= 0 else document.find(" ", start, end)) + 1 or end
    return document[start:end].lstrip("\n")


def _spread(found: Sequence[Passage], items: int, task: str) -> list[Passage]:
    """At most `items` passages, the first of every document before the second of any."""
    seen: Counter[int] = Counter()
    turns = []
    for place, passage in enumerate(found):
        turns.append((seen[passage.document], place))
        seen[passage.document] += 1
    if len(found) < min(items, FEWEST):
        raise InputError(
            f"The evaluation texts give {len(found)} items for {task}, expected at least {FEWEST}: "
            f"give longer texts, or leave {task} out of the tasks."
        )
    return [found[place] for _, place in sorted(turns)[:items]]


def _distractors(passage: Passage, found: Sequence[Passage], start: int) -> list[str]:
    """Three continuations from other documents, the nearest in length among the next `POOL`."""
    rotated = (found[(start + step) % len(found)] for step in range(len(found)))
    others = (
        each.following for each in rotated if each.document != passage.document and each.following != passage.following
    )
    pool = list(dict.fromkeys(islice(others, POOL)))
    if len(pool) < 3:
        raise InputError(
            f"The evaluation texts give {len(pool)} distractors for a continuation, expected at least 3: "
            "give more documents, or leave continuation out of the tasks."
        )
    return sorted(pool, key=lambda each: abs(len(each) - len(passage.following)))[:3]


def _hash(text: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\n{text}".encode()).hexdigest()
