"""Rows of a file of any kind, by its ending in upper or lower case: texts, conversations, instructions and questions.

    .jsonl .ndjson .jsonlines      JSON, a row per line
    .json                          a list of rows, or a row per line
    .csv .tsv                      rows below a line of names
    .parquet .arrow .feather       rows of columns
    .gz .bz2 .xz behind it         any of these, packed

A row is an object or, in JSON, a text by itself. A file with another ending is plain text, and has no rows. What a name promises is held
against the content: JSON lines that are called text would be read braces and all, so they are refused.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mgaa.errors import InputError
from tasks.data.files import PACKED, content, decoded, inner_name, located, unpacked

LINES, LIST, CELLS, COLUMNS = "JSON lines", "JSON", "a table of cells", "a table of columns"
KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), LINES),
    ".json": LIST,
    **dict.fromkeys((".csv", ".tsv"), CELLS),
    **dict.fromkeys((".parquet", ".arrow", ".feather"), COLUMNS),
}
"""What a file holds, by its ending."""

T = TypeVar("T")


class NullError(Exception):
    """A row has nothing where it is to have something."""


@dataclass(frozen=True)
class Rows:
    """Rows of a file or a data set in order, each with its number there, counted from 1."""

    source: str
    numbered: Sequence[tuple[int, Any]]
    unit: str = "Row"

    def taken(self, take: Callable[[Any, str], T], *, skip: bool = False) -> tuple[list[T], int]:
        """What `take` makes of each row and its place, and how many rows were left out.

        Args:
            take: raises `NullError` over a row with nothing to take.
            skip: leave such rows out.

        Raises:
            InputError: `take` refuses a row, or a row has nothing to take and is not to be left out.
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
    """The text of a row: the field, or the row itself if it is a text.

    Raises:
        NullError: the field is null or missing.
        InputError: the field is something else.
    """
    if isinstance(row, str):
        return whole_text(row, place)
    if not isinstance(row, dict):
        raise InputError(f"{place} is {shown(row)}, expected an object with a text in the field {field!r}, or a text.")
    value = row.get(field)
    if isinstance(value, str):
        return whole_text(value, place)
    there = ", ".join([name for name, each in row.items() if isinstance(each, str)] or map(str, row)) or "nothing"
    if field not in row:
        raise NullError(f"has no text in field {field!r}; there is: {there}: set `field`")
    if value is None:
        raise NullError(f"is null in the field {field!r}, expected a text")
    raise InputError(
        f"{place} has in the field {field!r} the value {shown(value)}, which is not text: set `field` to one that is."
    )


def whole_text(text: str, place: str) -> str:
    """The text, unless it holds half of a character: JSON can spell that (`"\\ud800"`), and no tokenizer and no file takes it.

    Raises:
        InputError: it does.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start : error.end])
        raise InputError(
            f"{place} has {half} in its text, half of a character (a lone surrogate): write the text in UTF-8, or leave the line out."
        ) from error
    return text


def shown(value: Any) -> str:
    """The beginning of a value, for a message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def kind(path: Path) -> str | None:
    """What a file holds, by its ending; null for plain text."""
    return KINDS.get(Path(inner_name(path)).suffix)


def stem(path: Path) -> str:
    """The name of a file without its endings, and without the number that `datasets` gives to a part."""
    endings = len(inner_name(path)) - len(Path(inner_name(path)).suffix)
    return re.sub(r"-\d{5}-of-\d{5}$", "", path.name[:endings])


def read(source: str | Path) -> Rows:
    """The rows of one file.

    Raises:
        InputError: there is none, it has no rows by its ending, or it is not what its ending says.
    """
    path = located(source)
    if path is None or not path.is_file():
        raise InputError(f"{source} cannot be read (No such file), expected a file of rows: check the path.")
    return rows_in(path, content(path))


def expected() -> str:
    """What a file may be, in words."""
    return f"expected a text file, or one of {', '.join(KINDS)}, packed or not ({', '.join(PACKED)})"


def rows_in(path: Path, raw: bytes, names: Sequence[str] | None = None) -> Rows:
    """The rows of a file whose content was read.

    Args:
        names: columns that are asked for, of a file that keeps its columns apart; null: all.

    Raises:
        InputError: the file has no rows, or is damaged.
    """
    what, inner = kind(path), unpacked(path, raw)
    if what is None:
        raise InputError(
            f"{path} is text by its ending and so has no rows; expected one of {', '.join(KINDS)}: rename or convert it."
        )
    if what == COLUMNS:
        return Rows(str(path), list(enumerate(_columns(path, inner, names), 1)))
    text = decoded(path, inner)
    if what == CELLS:
        return Rows(str(path), list(_cells(path, text)))
    if what == LIST and (whole := _whole(path, text)) is not None:
        return Rows(str(path), list(enumerate(whole, 1)))
    return Rows(str(path), list(_lines(path, text)), "Line")


def text_in(path: Path, raw: bytes) -> str:
    """The text of a file of plain text whose content was read.

    Raises:
        InputError: the file is damaged, not UTF-8, or looks like rows.
    """
    text = decoded(path, unpacked(path, raw))
    if what := looks_like(text):
        raise InputError(
            f"{path} looks like {what}, but is text by its ending and would be read braces and all: rename it, so that it ends in "
            f"{next(ending for ending, each in KINDS.items() if each == what)}."
        )
    return text


def looks_like(text: str) -> str | None:
    """Whether a text is JSON lines, by its first two, or a JSON list of objects."""
    beginning = text.lstrip()[:1]
    if beginning == "{":
        lines = [line for line in text.lstrip().split("\n", 2)[:2] if line.strip()]
        return (
            LINES if all(isinstance(_parsed(line), dict) for line in lines) or isinstance(_parsed(text), dict) else None
        )
    whole = _parsed(text) if beginning == "[" else None
    return LIST if isinstance(whole, list) and whole and all(isinstance(each, dict) for each in whole) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Only a newline ends a row; other separators may stand inside a string."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = row_of(line, f"Line {number} of {path}")
            except InputError as error:
                if isinstance(_parsed(text), list):
                    raise InputError(
                        f"{path} is one JSON list, not JSON lines: rename it, so that it ends in .json."
                    ) from error
                raise
            yield number, row


def row_of(line: str, place: str) -> Any:
    """The row of one JSON line.

    Args:
        place: the line and its file, as the message begins.

    Raises:
        InputError: it is not JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON ({error}), expected one object per line.") from error


def _whole(path: Path, text: str) -> list[Any] | None:
    """The rows of a JSON file; null where it has a row per line."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and isinstance(_parsed(text.lstrip().partition("\n")[0]), dict):
            return None
        if not text.strip():
            return []
        raise InputError(f"{path} is not JSON ({error}), expected a list of objects or of texts.") from error
    if isinstance(whole, dict):
        return [whole]
    if not isinstance(whole, list):
        raise InputError(f"{path} holds {shown(whole)}, expected a list of objects or of texts.")
    return whole


def _cells(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(sys.maxsize)  # a document is longer than what the module takes for a cell
    delimiter = "\t" if inner_name(path).endswith(".tsv") else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        if again := [name for index, name in enumerate(names) if name in names[:index]]:
            raise InputError(f"{path} has the column {again[0]!r} twice, expected names that differ.")
        for number, cells in enumerate((row for row in rows if row), 1):
            if len(cells) != len(names):
                raise InputError(
                    f"Row {number} of {path} has {len(cells)} cells, expected {len(names)}, as many as names in the first line: "
                    "put quotes around cells with a separator in them."
                )
            yield number, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{path} cannot be read near line {rows.line_num} ({error}): correct it, or convert it to .jsonl."
        ) from error


def _columns(path: Path, inner: bytes, names: Sequence[str] | None) -> list[dict[str, Any]]:
    import pyarrow

    try:
        table = _parquet(inner, names) if inner_name(path).endswith(".parquet") else _arrow(inner)
        table.validate(full=True)  # Arrow ends the process over offsets and lengths that lie
        wanted = [name for name in table.column_names if names is None or name in names] or table.column_names
        rows: list[dict[str, Any]] = table.select(wanted).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} is damaged, or is not what its ending says ({reason}): fetch it again, or rename it."
        ) from error
    return rows


def _parquet(inner: bytes, names: Sequence[str] | None) -> Any:
    import pyarrow
    from pyarrow import parquet

    file = parquet.ParquetFile(pyarrow.BufferReader(inner))
    return file.read(columns=[name for name in file.schema_arrow.names if names is None or name in names] or None)


def _arrow(inner: bytes) -> Any:
    """`datasets` writes streams, others write files."""
    import pyarrow
    from pyarrow import ipc

    if inner.startswith(b"ARROW1"):
        file = ipc.open_file(inner)
        schema, batches = file.schema, [file.get_batch(index) for index in range(file.num_record_batches)]
    else:
        stream = ipc.open_stream(inner)
        schema, batches = stream.schema, list(stream)
    for batch in batches:
        batch.validate(full=True)
    return pyarrow.Table.from_batches(batches, schema)
