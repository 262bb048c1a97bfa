"""Parsers of files with rows: JSON lines, a JSON list, CSV, Parquet and Arrow.

The format that a file name promises is checked against the content: JSON lines in a file of plain text would be read braces and all, so
they are refused.
"""

import csv
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mgaa.errors import InputError
from tasks.data.files import PACKED, decode_text, inner_name, locate_source, read_content, unpack
from tasks.data.rows import CELLS, COLUMNS, KINDS, LINES, LIST, Rows, file_kind, shorten


def read_rows(source: str | Path) -> Rows:
    """Read the rows of one file.

    Raises:
        InputError: the file is missing, has no rows by its ending, or is not what its ending says.
    """
    path = locate_source(source)
    if path is None or not path.is_file():
        raise InputError(f"{source} cannot be read (No such file), expected a file of rows: check the path.")
    return rows_in(path, read_content(path))


def expected_forms() -> str:
    """Describe the accepted kinds of files."""
    return f"expected a text file, or one of {', '.join(KINDS)}, packed or not ({', '.join(PACKED)})"


def rows_in(path: Path, raw: bytes, names: Sequence[str] | None = None) -> Rows:
    """Parse the rows of a file whose content was read.

    Args:
        names: columns to read from a file that is stored by columns; None reads all.

    Raises:
        InputError: the file has no rows, or is damaged.
    """
    what, inner = file_kind(path), unpack(path, raw)
    if what is None:
        raise InputError(
            f"{path} is text by its ending and so has no rows; expected one of {', '.join(KINDS)}: rename or convert it."
        )
    if what == COLUMNS:
        return Rows(str(path), list(enumerate(_columns(path, inner, names), 1)))
    text = decode_text(path, inner)
    if what == CELLS:
        return Rows(str(path), list(_cells(path, text)))
    if what == LIST and (whole := _whole(path, text)) is not None:
        return Rows(str(path), list(enumerate(whole, 1)))
    return Rows(str(path), list(_lines(path, text)), "Line")


def text_in(path: Path, raw: bytes) -> str:
    """Decode the text of a plain file whose content was read.

    Raises:
        InputError: the file is damaged, not UTF-8, or looks like rows.
    """
    text = decode_text(path, unpack(path, raw))
    if what := looks_like(text):
        raise InputError(
            f"{path} looks like {what}, but is text by its ending and would be read braces and all: rename it, so that it ends in "
            f"{next(ending for ending, each in KINDS.items() if each == what)}."
        )
    return text


def looks_like(text: str) -> str | None:
    """Detect JSON lines, by the first two lines of a text, or a JSON list of objects; None for anything else."""
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
    """Iterate over JSON lines; only a newline ends a row, since other separators may occur inside a string."""
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
    """Parse one JSON line.

    Args:
        place: the line and its file, for the beginning of the message.

    Raises:
        InputError: the line is not JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON ({error}), expected one object per line.") from error


def _whole(path: Path, text: str) -> list[Any] | None:
    """Rows of a JSON file; None if it has a row per line."""
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
        raise InputError(f"{path} holds {shorten(whole)}, expected a list of objects or of texts.")
    return whole


def _cells(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(sys.maxsize)  # a document is longer than the module's limit for a cell
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
        table.validate(full=True)  # Arrow would crash the process over false offsets and lengths
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
    """Read Arrow data, which `datasets` writes as a stream and others as a file."""
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
