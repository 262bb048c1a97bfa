"""Findings of an audit: a disagreement between two records, or something that could not be checked.

A disagreement makes the audit fail. What is not here (a backbone on another machine, a server that does not answer) is reported as
unchecked, and makes the audit fail only on request.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["disagrees", "unchecked"]


@dataclass(frozen=True)
class Finding:
    """One statement of an audit.

    Attributes:
        where: file, artifact, tag or parameter.
        what: the finding, and what was expected.
    """

    kind: Kind
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def disagreement(where: object, what: str) -> Finding:
    """Finding of two records that differ."""
    return Finding("disagrees", str(where), what)


def unchecked(where: object, what: str) -> Finding:
    """Finding of something that is not here to be compared."""
    return Finding("unchecked", str(where), what)


def compare_values(where: str, found: object, expected: object, whose: str) -> Iterable[Finding]:
    """Report a disagreement if two values differ."""
    if found != expected:
        yield disagreement(where, f"is {shorten(found)}, {whose} has {shorten(expected)}")


def shorten(value: object) -> str:
    """Shorten a value to fit into a line."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
