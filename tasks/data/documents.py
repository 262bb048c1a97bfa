"""Reader of any source as a list of documents in file order, with what identifies it.

A source is a file of text or of rows (tasks/data/rows.py), a folder of such files at any depth, a folder of `datasets` (saved, or data
files such as parquet), or a data set on the Hugging Face Hub at a pinned commit: a branch may change between two runs, a commit cannot. A
file is read whole regardless of `split`, because it has no splits; `from` and `to` divide it. In a folder, a split consists of the files of
its name and those in folders of its name.

`identity` contains everything that decides the documents: files by sha256, revision, split, field and the rule that cut the text.

Under a protocol of published perplexities (tasks/data/protocols.py) the documents are the rows of its data set, and nothing is stripped.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mgaa.errors import InputError, UsageError
from tasks.data import hub_datasets
from tasks.data.boundaries import cut_rows, cut_text
from tasks.data.chats import Document, conversation_of, fields_of
from tasks.data.files import UNREADABLE, files_below, inner_name, locate_source, read_content
from tasks.data.protocols import PROTOCOLS, rows_of_lines
from tasks.data.row_formats import rows_in, text_in
from tasks.data.rows import KINDS, LIST, Rows, file_kind, stem, text_of

_TEXT = ".txt"
"""Ending of plain text in a folder; a file that is named directly may have any ending."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WAYS = f"expected a text file, rows ({', '.join(KINDS)}), a folder of them, a folder of `datasets`, a Hub id (namespace/name) or demo"

T = TypeVar("T")


@dataclass(frozen=True)
class Documents:
    """Texts or conversations in file order; `identity` is JSON and names no folder, so it is the same on every machine."""

    texts: list[Document]
    identity: dict[str, Any]


@dataclass(frozen=True)
class Reading:
    """Settings for taking documents from rows and text: see `read_documents`."""

    field: str
    separator: str
    form: str
    nulls: str
    protocol: str | None = None

    def of_rows(self, rows: Rows) -> tuple[list[Document], str, int]:
        """Documents of rows, the rule in words, and the number of rows that were left out for lack of a document."""
        skip = self.nulls == "skip"
        if self.form == "chat":
            chats, left = rows.take(lambda row, place: conversation_of(row, self.field, place), skip=skip)
            return [*chats], "every row", left
        texts, left = rows.take(lambda row, place: text_of(row, self.text_field, place), skip=skip)
        if self.protocol is not None:
            return [*texts], f"rows as they are, by the protocol {self.protocol}", left
        documents, rule = cut_rows(texts, self.separator)
        return [*documents], rule, left

    def of_text(self, text: str) -> tuple[list[Document], str]:
        """Documents of plain text, and the rule in words."""
        if self.protocol is not None:
            return [*rows_of_lines(self.protocol, text)], f"lines as rows, by the protocol {self.protocol}"
        documents, rule = cut_text(text, self.separator)
        return [*documents], rule

    @property
    def text_field(self) -> str:
        """The column with the text: that of the setting or, where it says nothing, of the protocol."""
        return PROTOCOLS[self.protocol].field if self.protocol and self.field == "text" else self.field

    @property
    def columns(self) -> Sequence[str]:
        """Columns that are read, of rows that are stored by columns."""
        return fields_of(self.field) if self.form == "chat" else (self.text_field,)

    def identity(self, facts: dict[str, Any], rules: Sequence[str], left: int) -> dict[str, Any]:
        """Identity of documents read with these settings; `facts` identify the source."""
        named = {"field": self.text_field, "separator": ", ".join(dict.fromkeys(rules))}
        apart = {"form": self.form} if self.form != "text" else {}
        counted = {"left_out": left} if left else {}
        files = {name: facts.pop(name) for name in ("files",) if name in facts}  # last, since the list may be long
        return {**facts, **named, **apart, **counted, **files}


def read_documents(
    source: str | Path,
    *,
    split: str | None = None,
    revision: str | None = None,
    subset: str | None = None,
    field: str = "text",
    separator: str = "auto",
    form: str = "text",
    nulls: str = "stop",
    protocol: str | None = None,
) -> Documents:
    """Read the documents of a source.

    Args:
        source: a path, or a Hub id.
        split: split of a folder or a data set; None takes all files of a folder.
        revision: commit of a Hub id, 40 hexadecimal digits.
        subset: configuration of a Hub id, such as `wikitext-2-raw-v1`.
        field: field of a row that holds the text.
        separator: rule for where documents end, see `tasks.data.boundaries`.
        form: `text`; or `chat`, conversations (`tasks.data.chats`), which only rows can hold.
        nulls: `stop` at a row without text, or `skip` it; skipped rows are counted in the identity.
        protocol: a name in `tasks.data.protocols`: the documents are the rows of its data set as they are; None: `separator` finds them,
            and blanks around them are stripped.

    Raises:
        UsageError: the revision is missing, not a commit, or given for a file.
        InputError: something is missing, empty, unreadable, or not UTF-8.
    """
    path, reading = locate_source(source), Reading(field, separator, form, nulls, protocol)
    if path is None:
        found = _hub(str(source), split, revision, subset, reading)
    elif revision is not None or subset is not None:
        raise UsageError(
            f"{source} is on this machine, so it has no revision or subset ({revision}, {subset}): leave them null."
        )
    elif path.is_file():
        found = _files([path], path.parent, reading)
    else:
        found = _folder(path, split, reading)
    if not found.texts:
        raise InputError(
            f"{source} holds 0 documents, expected at least 1 with text: check the file, its split and its field."
        )
    return found


def portion(texts: Sequence[T], start: float, end: float) -> list[T]:
    """Documents from fraction `start` to fraction `end` of the list; consecutive ranges neither share nor lose a document.

    Raises:
        UsageError: unless 0 <= start < end <= 1.
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


def digest(documents: Iterable[Document]) -> str:
    """Digest of documents: sha256 over their lengths and contents, in order."""
    total = hashlib.sha256()
    for document in documents:
        text = document if isinstance(document, str) else json.dumps(document, sort_keys=True, ensure_ascii=False)
        content = text.encode()
        total.update(f"{len(content)}\n".encode() + content)
    return total.hexdigest()


def _files(paths: Sequence[Path], base: Path, reading: Reading, split: str | None = None) -> Documents:
    """Documents of files, which are named by their paths below `base`."""
    texts: list[Document] = []
    rules, records, left = [], [], 0
    for path in paths:
        raw = read_content(path)
        documents, rule, without = _of_file(path, raw, reading)
        texts += documents
        rules.append(rule)
        records.append(hub_datasets.describe_file(path.relative_to(base).as_posix(), raw))
        left += without
    return Documents(texts, reading.identity({"kind": "file", "split": split, "files": records}, rules, left))


def _of_file(path: Path, raw: bytes, reading: Reading) -> tuple[list[Document], str, int]:
    if file_kind(path) is not None:
        return reading.of_rows(rows_in(path, raw, reading.columns))
    if reading.form == "chat":
        raise InputError(
            f"{path} is text by its ending, expected conversations in rows ({', '.join(KINDS)}): rename or convert it, or set `form: text`."
        )
    return *reading.of_text(text_in(path, raw)), 0


def _folder(folder: Path, split: str | None, reading: Reading) -> Documents:
    there = files_below(folder)
    files = _data(there)
    if hub_datasets.is_data_set(folder, files):
        return _of_rows(*hub_datasets.read_folder(folder, split, reading.columns), reading)
    if not files:
        names = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise InputError(f"{folder} holds {names}; {_WAYS}: a folder needs files that end so, or in {_TEXT}.")
    if split is None:
        return _files(files, folder, reading, split)
    chosen = [path for path in files if split in _splits(path, folder)]
    if not chosen:
        names = ", ".join(sorted({name for path in files for name in _splits(path, folder)})[:8])
        raise InputError(
            f"{folder} has no split {split!r}; there are: {names}: set `split` to one, or to null for all."
        )
    inside = all(path.is_relative_to(folder / split) for path in chosen)
    return _files(chosen, folder / split if inside else folder, reading, split)


def _data(paths: Sequence[Path]) -> list[Path]:
    """Files that hold documents; a .json file next to other kinds only describes them, and is left out."""
    known = [path for path in paths if file_kind(path) is not None or inner_name(path).endswith(_TEXT)]
    return [path for path in known if file_kind(path) != LIST] or known


def _splits(path: Path, folder: Path) -> list[str]:
    """Splits that a file belongs to: those named like the file, or like a folder that contains it."""
    return [*path.relative_to(folder).parts[:-1], stem(path)]


def _hub(source: str, split: str | None, revision: str | None, subset: str | None, reading: Reading) -> Documents:
    named_file = file_kind(Path(source)) or Path(inner_name(Path(source))).suffix in (_TEXT, *UNREADABLE)
    if not _HUB_ID.fullmatch(source) or named_file:
        raise InputError(f"There is no file or folder {source!r}; {_WAYS}: check the path.")
    if revision is None or not _COMMIT.fullmatch(revision):
        raise UsageError(
            f"{source!r} is no file or folder here, so it is read from the Hub, at revision {revision!r}: "
            "expected a commit of 40 hexadecimal digits, because a branch may change: "
            "set `revision` (the page 'Files and versions' lists commits), or correct the path."
        )
    return _of_rows(*hub_datasets.read_hub(source, split, revision, subset, reading.columns), reading)


def _of_rows(rows: Rows, facts: dict[str, Any], reading: Reading) -> Documents:
    documents, rule, left = reading.of_rows(rows)
    return Documents(documents, reading.identity(facts, [rule], left))
