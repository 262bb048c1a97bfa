"""What an audit finds: one disagreement between two records each, or one thing that could not be looked at.

A disagreement makes the audit fail. What is not here (a backbone that was on another machine, a server that does not answer) is told, and
fails nothing unless it was asked for.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["disagrees", "unchecked"]


@dataclass(frozen=True)
class Finding:
    """Something that an audit tells.

    Attributes:
        where: the file, artifact, tag or parameter.
        what: what was found there, and what was expected.
    """

    kind: Kind
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def disagrees(where: object, what: str) -> Finding:
    """Two records differ."""
    return Finding("disagrees", str(where), what)


def unchecked(where: object, what: str) -> Finding:
    """Something is not here to be compared."""
    return Finding("unchecked", str(where), what)


def differing(where: str, found: object, expected: object, whose: str) -> Iterable[Finding]:
    """A disagreement, if two values differ."""
    if found != expected:
        yield disagrees(where, f"is {short(found)}, {whose} has {short(expected)}")


def short(value: object) -> str:
    """A value as it fits into a line."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
