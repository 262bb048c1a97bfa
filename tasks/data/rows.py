"""Rows of a file of any kind, chosen by its ending in upper or lower case: texts, conversations, instructions and questions.

    .jsonl .ndjson .jsonlines      JSON, a row per line
    .json                          a list of rows, or a row per line
    .csv .tsv                      rows below a line of names
    .parquet .arrow .feather       rows of columns
    followed by .gz .bz2 .xz       any of these, packed

A row is an object or, in JSON, also a text by itself. A file with another ending is plain text, and has no rows. The files are parsed by
tasks/data/row_formats.py.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mgaa.errors import InputError
from tasks.data.files import inner_name

LINES, LIST, CELLS, COLUMNS = "JSON lines", "JSON", "a table of cells", "a table of columns"
KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), LINES),
    ".json": LIST,
    **dict.fromkeys((".csv", ".tsv"), CELLS),
    **dict.fromkeys((".parquet", ".arrow", ".feather"), COLUMNS),
}
"""Format of a file by its ending."""

T = TypeVar("T")


class NullError(Exception):
    """A row lacks the value that is needed."""


@dataclass(frozen=True)
class Rows:
    """Rows of a file or a data set in order, each with its number there, counted from 1."""

    source: str
    numbered: Sequence[tuple[int, Any]]
    unit: str = "Row"

    def take(self, take: Callable[[Any, str], T], *, skip: bool = False) -> tuple[list[T], int]:
        """Apply `take` to each row and its place; returns the results, and the number of rows that were left out.

        Args:
            take: raises `NullError` for a row with nothing to take.
            skip: leave such rows out.

        Raises:
            InputError: `take` rejects a row, or a row has nothing to take and `skip` is not set.
        """
        found, nulls, first = [], 0, ""
        for number, row in self.numbered:
            place = f"{self.unit} {number} of {self.source}"
            try:
                found.append(take(row, place))
            except NullError as null:
                nulls, first = nulls + 1, first or f"{place} {null}"
        if nulls and not skip:
            raise InputError(
                f"{first}; {nulls} of {len(self.numbered)} rows are so: correct them, or leave them out with `nulls: skip`."
            )
        return found, nulls


def text_of(row: Any, field: str, place: str) -> str:
    """Text of a row, which is in one of its fields or the row itself.

    Raises:
        NullError: the field is null or missing.
        InputError: the field is something else.
    """
    if isinstance(row, str):
        return whole_text(row, place)
    if not isinstance(row, dict):
        raise InputError(
            f"{place} is {shorten(row)}, expected an object with a text in the field {field!r}, or a text."
        )
    value = row.get(field)
    if isinstance(value, str):
        return whole_text(value, place)
    there = ", ".join([name for name, each in row.items() if isinstance(each, str)] or map(str, row)) or "nothing"
    if field not in row:
        raise NullError(f"has no text in field {field!r}; there is: {there}: set `field`")
    if value is None:
        raise NullError(f"is null in the field {field!r}, expected a text")
    raise InputError(
        f"{place} has in the field {field!r} the value {shorten(value)}, which is not text: set `field` to one that is."
    )


def whole_text(text: str, place: str) -> str:
    """Return the text, unless it has half of a character: JSON can encode that (`"\\\\ud800"`), but no tokenizer and no file accepts it.

    Raises:
        InputError: the text contains half of a character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start : error.end])
        raise InputError(
            f"{place} has {half} in its text, half of a character (a lone surrogate): write the text in UTF-8, or leave the line out."
        ) from error
    return text


def shorten(value: Any) -> str:
    """Beginning of a value, for a message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def file_kind(path: Path) -> str | None:
    """Format of a file by its ending; None for plain text."""
    return KINDS.get(Path(inner_name(path)).suffix)


def stem(path: Path) -> str:
    """Name of a file without its endings and without the part number that `datasets` appends."""
    endings = len(inner_name(path)) - len(Path(inner_name(path)).suffix)
    return re.sub(r"-\d{5}-of-\d{5}$", "", path.name[:endings])
