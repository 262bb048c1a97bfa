"""Any text source as a list of documents in file order, and what identifies it.

A source is a text file, a jsonl file, a folder of such files, a folder of `datasets` (saved, or data files such as parquet), or a data
set on the Hugging Face Hub at a pinned commit: a branch may change between two runs, a commit cannot. A file is read whole whatever
`split` says, because it has no splits; `from` and `to` divide it.

Everything that decides the documents is in `identity`: files by sha256, revision, split, field and the rule that cut the text.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mgaa.errors import InputError, UsageError
from tasks import data_sets
from tasks.cutting import cut, cut_rows
from tasks.rows import check_text, row_of

_FILES = (".txt", ".jsonl")
"""What a folder of text files may hold; a file named by itself may have any ending."""

_UNREADABLE = (*data_sets.DATA, ".json", ".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".pdf", ".docx", ".html")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WAYS = (
    "expected a text file, a .jsonl file, a folder of them, a folder of `datasets`, a Hub id (namespace/name) or demo"
)

T = TypeVar("T")


@dataclass(frozen=True)
class Documents:
    """Texts in file order; `identity` can be written as JSON and names no folder, so it is the same on every machine."""

    texts: list[str]
    identity: dict[str, Any]


def read(
    source: str | Path,
    *,
    split: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    field: str = "text",
    separator: str = "auto",
) -> Documents:
    """Read `source`.

    Args:
        source: a path, or a Hub id.
        split: of a folder or a data set; None takes all files of a folder.
        revision: commit of a Hub id, 40 hexadecimal digits.
        subset: configuration of a Hub id, such as `wikitext-2-raw-v1`.
        field: which field of a jsonl line or data set row is the text.
        separator: where documents end, see `tasks.cutting`.

    Raises:
        UsageError: a revision that is missing, not a commit, or given for a file.
        InputError: anything missing, empty, unreadable, or not UTF-8.
    """
    path = Path(source).expanduser()
    if not path.exists():
        found = Documents(*_hub(str(source), split, revision, subset, field, separator))
    elif revision is not None or subset is not None:
        raise UsageError(
            f"{source} is on this machine, so it has no revision or subset ({revision}, {subset}): leave them null."
        )
    elif path.is_file():
        found = _files([path], field, separator)
    else:
        found = _folder(path, split, field, separator)
    if not found.texts:
        raise InputError(
            f"{source} holds 0 documents, expected at least 1 with text: check the file, its split and its field."
        )
    return found


def portion(texts: Sequence[T], start: float, end: float) -> list[T]:
    """The documents from fraction `start` to fraction `end` of the list; consecutive ranges neither share nor lose a document.

    Raises:
        UsageError: not 0 <= start < end <= 1.
        InputError: no document lies in the range.
    """
    if not 0 <= start < end <= 1:
        raise UsageError(f"The range of documents is from {start} to {end}, expected 0 <= from < to <= 1.")
    chosen = list(texts[round(start * len(texts)) : round(end * len(texts))])
    if not chosen:
        raise InputError(
            f"No document of {len(texts)} lies between the fractions {start} and {end}: widen the range or give more documents."
        )
    return chosen


def digest(texts: Iterable[str]) -> str:
    """The identity of documents: sha256 over their lengths and contents, in order."""
    total = hashlib.sha256()
    for content in (text.encode() for text in texts):
        total.update(f"{len(content)}\n".encode() + content)
    return total.hexdigest()


def _files(paths: Sequence[Path], field: str, separator: str, split: str | None = None) -> Documents:
    texts: list[str] = []
    rules: dict[str, None] = {}
    records = []
    for path in paths:
        content = _bytes(path)
        documents, rule = _cut_file(path, _decode(content, path), field, separator)
        texts += documents
        rules[rule] = None
        records.append(data_sets.record(path.name, content))
    identity = {"kind": "file", "split": split, "field": field, "separator": ", ".join(rules), "files": records}
    return Documents(texts, identity)


def _cut_file(path: Path, text: str, field: str, separator: str) -> tuple[list[str], str]:
    if path.suffix == ".jsonl":
        return cut_rows(
            [_row(line, number, path, field) for number, line in enumerate(text.split("\n"), 1) if line.strip()],
            separator,
        )
    return cut(text, separator)


def _bytes(path: Path) -> bytes:
    if path.suffix in _UNREADABLE:
        raise InputError(
            f"{path} ends in {path.suffix}; {_WAYS}: unpack or convert it ({', '.join(data_sets.DATA)} are read from a folder)."
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}), expected a readable file: check its permissions."
        ) from error


def _decode(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8: byte {content[error.start]:#04x} at offset {error.start} ({error.reason}): "
            "convert it, for example with `iconv -t utf-8`."
        ) from error


def _row(line: str, number: int, path: Path, field: str) -> str:
    row = row_of(line, f"Line {number} of {path}")
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        there = (
            ", ".join(name for name, value in row.items() if isinstance(value, str))
            if isinstance(row, dict)
            else "no object"
        )
        raise InputError(f"Line {number} of {path} has no text in field {field!r}; there is: {there}: set `field`.")
    check_text(row[field], f"Line {number} of {path}")
    return str(row[field])


def _folder(folder: Path, split: str | None, field: str, separator: str) -> Documents:
    files = sorted(path for path in folder.iterdir() if path.suffix in _FILES)
    if split is not None and (folder / split).is_dir() and not files:
        files = sorted(path for path in (folder / split).iterdir() if path.suffix in _FILES)
    elif split is not None and files:
        there = sorted({path.stem for path in files})
        files = [path for path in files if path.stem == split]
        if not files:
            raise InputError(
                f"{folder} has no split {split!r}; there are: {', '.join(there)}: set `split` to one, or to null for all."
            )
    if files:
        return _files(files, field, separator, split)
    if not data_sets.has_data(folder):
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise InputError(
            f"{folder} holds {names}; {_WAYS}: a folder needs {', '.join(_FILES)} files or data files of `datasets`."
        )
    return Documents(*data_sets.read_folder(folder, split, field, separator))


def _hub(
    source: str, split: str | None, revision: str | None, subset: str | None, field: str, separator: str
) -> tuple[list[str], dict[str, Any]]:
    if not _HUB_ID.fullmatch(source) or Path(source).suffix in (*_FILES, *_UNREADABLE):
        raise InputError(f"There is no file or folder {source!r}; {_WAYS}: check the path.")
    if revision is None or not _COMMIT.fullmatch(revision):
        raise UsageError(
            f"{source!r} is no file or folder here, so it is read from the Hub, at revision {revision!r}: "
            "expected a commit of 40 hexadecimal digits, because a branch may change: "
            "set `revision` (the page 'Files and versions' lists commits), or correct the path."
        )
    return data_sets.read_hub(source, split, revision, subset, field, separator)
