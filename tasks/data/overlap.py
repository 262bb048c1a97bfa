"""Check that calibration, validation and evaluation share no text, however each was cut.

Every pair of portions is searched for two signs:

1. a whole document of at least 200 characters in both (equal up to blanks at its ends). One is enough to refuse the run.
2. sequences of 13 words in both (letters and digits only, lower case; a shorter document counts as one sequence), the unit by which
   the contamination of GPT-3's benchmarks was measured (Brown et al. 2020, arXiv 2005.14165, appendix C). If they are more than 5 % of the
   smaller side's distinct sequences, the run is refused. This finds the same text read with another separator, field, file type or
   tokenisation.

The rest is common language: headings, stock phrases, repeated one-line sentences. It is not dropped, because that would change the
published sets, but counted for the card of the texts. The two cases are far apart: unrelated portions of WikiText-2, PTB, C4,
TinyStories and the demo's docstrings share 0.00 to 0.9 % and no long document (PTB repeats up to 23 short lines); the two published
forms of the WikiText-2 test set share 44 %.

Ranges of one source are first compared as ranges: if two intersect, the configuration is wrong, whatever the documents are.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from mgaa.errors import InputError, UsageError

LONG = 200
SEQUENCE = 13
LIMIT = 0.05
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """Text that two lists of documents share."""

    documents: int
    """Distinct documents in both, of any length."""
    long: int
    """Those of at least `LONG` characters."""
    sequences: float
    """Share of the smaller side's distinct word sequences that also occur on the other side."""
    example: str
    """The longest shared document, or empty."""

    @property
    def is_too_large(self) -> bool:
        """Tell whether this is more than common language."""
        return self.long > 0 or self.sequences > LIMIT


def find_overlap(first: Sequence[str], second: Sequence[str]) -> Overlap:
    """Compare two lists of documents, in time linear in both and memory of the smaller."""
    shared = {text.strip() for text in first} & {text.strip() for text in second}
    small, large = sorted((first, second), key=lambda texts: sum(map(len, texts)))
    own = {sequence for text in small for sequence in _sequences(text)}
    met = {sequence for text in large for sequence in _sequences(text) if sequence in own}
    return Overlap(
        documents=len(shared),
        long=sum(len(text) >= LONG for text in shared),
        sequences=len(met) / max(1, len(own)),
        example=max(shared, key=lambda text: (len(text), text), default=""),
    )


def require_disjoint(portions: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Compare every pair of named portions; returns what they share, for the card of the texts, by `first-second`.

    Raises:
        InputError: two portions share more than common language.
    """
    found = {}
    for first, second in combinations(portions, 2):
        pair = find_overlap(portions[first], portions[second])
        if pair.is_too_large:
            raise InputError(_message(first, second, pair))
        found[f"{first}-{second}"] = {"documents": pair.documents, "sequences": pair.sequences}
    return found


def require_ranges_apart(sections: Mapping[str, tuple[str, float, float]]) -> None:
    """Compare every pair of sections, each given as its source (source, split, revision) and its range `from`, `to`.

    Raises:
        UsageError: two sections read the same source in ranges that overlap.
    """
    for (first, one), (second, other) in combinations(sections.items(), 2):
        if one[0] == other[0] and one[1] < other[2] and other[1] < one[2]:
            raise UsageError(
                f"data.{first} reads {one[0]} from {one[1]} to {one[2]} and data.{second} from {other[1]} to {other[2]}: "
                "the ranges overlap, expected ranges that do not: change `from` and `to`, the split or the source."
            )


def _message(first: str, second: str, pair: Overlap) -> str:
    example = f", for example {pair.example[:60]!r}" if pair.long else ""
    return (
        f"The {first} and {second} texts overlap: {pair.long} documents of at least {LONG} characters are in both{example}, and "
        f"{pair.sequences:.1%} of the smaller one's sequences of {SEQUENCE} words; expected 0 and at most {LIMIT:.0%}: "
        f"give data.{first} and data.{second} different sources, splits, or ranges (`from`, `to`) that do not meet."
    )


def _sequences(text: str) -> Iterator[bytes]:
    words = _WORD.findall(text.lower())
    for start in range(max(min(1, len(words)), len(words) - SEQUENCE + 1)):
        yield hashlib.blake2b(" ".join(words[start : start + SEQUENCE]).encode(), digest_size=8).digest()
