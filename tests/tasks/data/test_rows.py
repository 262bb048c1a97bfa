"""Documents out of files of every kind, however they are called and packed; what a file is not is said."""

import bz2
import gzip
import itertools
import json
import lzma
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import ipc, parquet

from mgaa.errors import InputError
from tasks.data import files, questions, row_formats
from tasks.data.documents import Documents, read_documents
from tasks.steps.read_texts import source_content

ROWS = [{"text": "one\n\ntwo, three", "id": 1}, {"text": 'fo"ur\té', "id": 2}, {"text": "null", "id": 3}]
TEXTS = [row["text"] for row in ROWS]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table() -> Any:
    return pyarrow.Table.from_pylist(ROWS)


def as_parquet(path: Path) -> None:
    parquet.write_table(table(), path)


def as_arrow(new: Callable[..., Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with pyarrow.OSFile(str(path), "wb") as sink, new(sink, table().schema) as writer:
            writer.write_table(table())

    return write


def cells(separator: str, newline: str = "\n") -> str:
    quoted = [[f'"{row["id"]}"', '"' + str(row["text"]).replace('"', '""') + '"'] for row in ROWS]
    return "".join(separator.join(line) + newline for line in [["id", "text"], *quoted])


WRITTEN: dict[str, str | bytes | Callable[[Path], None]] = {
    "a.jsonl": LINES,
    "a.JSONL": LINES,
    "a.Jsonl": LINES,
    "a.ndjson": LINES,
    "a.NDJSON": LINES,
    "a.jsonlines": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES.encode(),
    "crlf.jsonl": LINES.replace("\n", "\r\n"),
    "texts.jsonl": "".join(json.dumps(text) + "\n" for text in TEXTS),
    "a.json": json.dumps(ROWS),
    "a.JSON": json.dumps(ROWS, indent=1),
    "lines.json": LINES,
    "texts.json": json.dumps(TEXTS),
    "a.jsonl.gz": gzip.compress(LINES.encode()),
    "a.JSONL.GZ": gzip.compress(LINES.encode()[:50]) + gzip.compress(LINES.encode()[50:]),
    "a.ndjson.gz": gzip.compress(LINES.encode()),
    "a.json.bz2": bz2.compress(json.dumps(ROWS).encode()),
    "a.jsonl.xz": lzma.compress(LINES.encode()),
    "a.csv": cells(","),
    "a.CSV": cells(",", "\r\n"),
    "bom.csv": "\ufeff" + cells(","),
    "a.tsv": cells("\t"),
    "a.csv.gz": gzip.compress(cells(",").encode()),
    "a.parquet": as_parquet,
    "a.PARQUET": as_parquet,
    "a.arrow": as_arrow(ipc.new_file),
    "stream.arrow": as_arrow(ipc.new_stream),
    "a.feather": as_arrow(ipc.new_file),
}


def put(path: Path, content: str | bytes | Callable[[Path], None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_of_rows_gives_a_document_for_each(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name, WRITTEN[name])
    found = read_documents(path)
    assert found.texts == TEXTS
    assert found.identity["files"] == [{**found.identity["files"][0], "name": name, "bytes": path.stat().st_size}]


@pytest.mark.parametrize("name", ["a.TXT", "a.Txt", "a.txt.gz", "a.TXT.BZ2", "a.txt.xz"])
def test_plain_text_is_text_in_any_case_and_packed(tmp_path: Path, name: str) -> None:
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(Path(name).suffix.lower(), bytes)
    put(tmp_path / "folder" / name, pack(b"one\r\n\r\ntwo"))
    assert (
        read_documents(tmp_path / "folder" / name).texts == read_documents(tmp_path / "folder").texts == ["one", "two"]
    )


def test_a_long_document_fits_into_a_cell(tmp_path: Path) -> None:
    assert read_documents(put(tmp_path / "a.csv", f"text\n{'x' * 300_000}\n")).texts == ["x" * 300_000]


@pytest.mark.parametrize("name", ["a.txt", "a.raw", "a", "a.json5", "a.txt.gz"])
@pytest.mark.parametrize(
    ("content", "ending"),
    [
        (LINES, "jsonl"),
        (json.dumps(ROWS[0]), "jsonl"),
        ("\n" + LINES, "jsonl"),
        (json.dumps(ROWS), "json"),
        (json.dumps(ROWS[0], indent=1), "jsonl"),
    ],
)
def test_rows_that_are_called_text_are_refused(tmp_path: Path, name: str, content: str, ending: str) -> None:
    path = put(tmp_path / name, gzip.compress(content.encode()) if name.endswith(".gz") else content)
    with pytest.raises(
        InputError, match=rf"looks like JSON.* braces and all: rename it, so that it ends in \.{ending}"
    ):
        read_documents(path)


@pytest.mark.parametrize("content", ["{not json}\n\nx", "[1, 2]\n\nx", '{"a": 1}\nand text', "[1, 2]"])
def test_text_with_braces_is_text(tmp_path: Path, content: str) -> None:
    assert "".join(map(str, read_documents(put(tmp_path / "a.txt", content), separator="none").texts)) == content


WRONG: dict[str, tuple[str, str | bytes, str]] = {
    "a list in lines": ("a.jsonl", json.dumps(ROWS, indent=1), r"is one JSON list, not JSON lines: .* ends in \.json"),
    "a list in a line": ("a.jsonl", json.dumps(ROWS), r"Line 1 .* is \[\{'text'.*expected an object with a text"),
    "a number": ("a.jsonl", "3\n", "Line 1 of .* is 3, expected an object with a text"),
    "half a line": ("a.jsonl", LINES + '{"text": ', "Line 4 of .* is not JSON"),
    "deep": ("a.jsonl", "[" * 100_000, "Line 1 of .* is not JSON"),
    "deep list": ("a.json", "[" * 100_000, "is not JSON"),
    "no JSON": ("a.json", "one\ntwo", "is not JSON .*expected a list of objects or of texts"),
    "broken list": ("a.json", '[{"text": "a"}', "is not JSON"),
    "a number alone": ("a.json", "3", "holds 3, expected a list"),
    "empty": ("a.jsonl", "", "0 documents"),
    "empty list": ("a.json", "[]", "0 documents"),
    "empty json": ("a.json", "", "0 documents"),
    "empty csv": ("a.csv", "", "0 documents"),
    "only names": ("a.csv", "text\n", "0 documents"),
    "empty gz": ("a.txt.gz", gzip.compress(b""), "0 documents"),
    "utf-16": ("a.txt", "one\ntwo".encode("utf-16"), "it is UTF-16; convert it with `iconv -f utf-16"),
    "utf-16 rows": ("a.jsonl", LINES.encode("utf-16"), "it is UTF-16; convert it"),
    "utf-16 without a mark": ("a.txt", "one\ntwo".encode("utf-16-le"), "character 1 is a zero byte.*`iconv"),
    "latin-1": ("a.csv", "text\ncafé\n".encode("latin-1"), "is not UTF-8: byte 0xe9 at offset 8 .*iconv -f latin1"),
    "gzip in disguise": ("a.txt", gzip.compress(b"one two three"), "is not UTF-8.*it is gzip; unpack"),
    "parquet in disguise": ("a.jsonl", b"PAR1\x15\x00\xff", "it is Parquet; unpack or convert it"),
    "no gzip": ("a.jsonl.gz", LINES, "cannot be unpacked .*expected gz: fetch it again, or rename it"),
    "truncated": ("a.jsonl.gz", gzip.compress(LINES.encode() * 9)[:-20], "cannot be unpacked"),
    "damaged": ("a.txt.gz", gzip.compress(os.urandom(99))[:30] + b"x" * 60, "cannot be unpacked"),
    "truncated bz2": ("a.txt.bz2", bz2.compress(b"one")[:-4], "cannot be unpacked"),
    "truncated xz": ("a.txt.xz", lzma.compress(b"one")[:-4], "cannot be unpacked"),
    "damaged parquet": ("a.parquet", b"PAR1 not really PAR1", "is damaged, or is not what its ending says"),
    "damaged arrow": ("a.arrow", b"ARROW1\0\0 no", "is damaged, or is not what its ending says"),
    "no arrow": ("a.arrow", b"text", "is damaged, or is not what its ending says"),
    "empty parquet": ("a.parquet", b"", "is damaged, or is not what its ending says"),
    "packed badly": ("a.zst", b"x", r"ends in \.zst; expected text, rows or columns: unpack"),
    "more cells": ("a.csv", "text,id\none,1\ntwo,2,3\n", "Row 2 of .* has 3 cells, expected 2"),
    "open quotes": ("a.csv", 'text,id\n"one,1\n', "cannot be read near line"),
    "names twice": ("a.csv", "text,text\none,two\n", "has the column 'text' twice"),
    "other separator": ("a.csv", "text;id\none;1\n", "Row 1 of .* has no text in field 'text'; there is: text;id"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_file_is_not_is_said_in_one_message(tmp_path: Path, case: str) -> None:
    name, content, message = WRONG[case]
    path = put(tmp_path / name, content)
    with pytest.raises(InputError, match=message) as caught:
        read_documents(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_packed_file_that_does_not_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "a.txt.gz", gzip.compress(b"0" * 1_000_000))
    assert read_documents(path).texts == ["0" * 1_000_000]
    monkeypatch.setattr(files, "FLOOR", 1000)
    with pytest.raises(
        InputError, match=r"unpacks to more than \d+, expected at most 100 times its size: .* unpack it"
    ):
        read_documents(path)


@pytest.mark.parametrize("name", ["a.arrow", "saved/data-00000-of-00001.arrow"])
def test_a_table_with_offsets_that_lie_is_refused_and_does_not_end_the_process(tmp_path: Path, name: str) -> None:
    """Run by itself, as Arrow would take the tests with it."""
    path, source = tmp_path / name, str(tmp_path / name.partition("/")[0])
    if "/" in name:
        datasets.Dataset.from_list(ROWS).save_to_disk(source)
    else:
        put(path, as_arrow(ipc.new_stream))
    content = bytearray(path.read_bytes())
    offsets = content.rindex(struct.pack("<4i", 0, *itertools.accumulate(len(text.encode()) for text in TEXTS)))
    content[offsets + 4 : offsets + 8] = struct.pack("<i", 2**31 - 1)
    path.write_bytes(content)
    code = f"from tasks.data.documents import read_documents; read_documents({source!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "InputError" in done.stderr.splitlines()[-1]
    assert "is damaged" in done.stderr.splitlines()[-1]


NULLS = [{"text": "one"}, {"text": None}, {"text": "two"}, {"text": None}]


def rows_with_nulls(path: Path) -> None:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(NULLS), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in NULLS))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "data/train.parquet"])
def test_rows_without_text_are_named_and_counted_or_left_out(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, rows_with_nulls)
    source, split = (tmp_path / "data", "train") if "/" in name else (tmp_path / name, None)
    with pytest.raises(
        InputError, match=r" 2 of .* is null in the field 'text'.*; 2 of 4 rows are so: .*`nulls: skip`"
    ):
        read_documents(source, split=split)
    found = read_documents(source, split=split, nulls="skip")
    assert (found.texts, found.identity["left_out"]) == (["one", "two"], 2)


def test_a_field_that_is_missing_in_some_rows_is_null_there_and_in_all_a_mistake(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", '{"text": "one"}\n{"id": 2}\n')
    assert read_documents(path, nulls="skip").texts == ["one"]
    with pytest.raises(InputError, match=r"Line 1 of .* has no text in field 'body'; there is: text.*2 of 2 rows"):
        read_documents(path, field="body")
    with pytest.raises(InputError, match="0 documents"):
        read_documents(path, field="body", nulls="skip")


def test_a_number_in_the_place_of_text_is_no_null(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Line 1 of .* in the field 'text' the value 3, which is not text"):
        read_documents(put(tmp_path / "a.jsonl", '{"text": 3}\n'), nulls="skip")


# Folders


def tree(folder: Path) -> Path:
    put(folder / "b" / "2.jsonl", '{"text": "b2"}\n')
    put(folder / "b" / "1.txt.gz", gzip.compress(b"b1"))
    put(folder / "a.NDJSON", '{"text": "a"}\n')
    put(folder / "c" / "deep" / "x.Parquet", lambda path: parquet.write_table(pyarrow.table({"text": ["x"]}), path))
    put(folder / ".hidden" / "h.txt", "hidden")
    put(folder / "b" / ".h.txt", "hidden")
    put(folder / "README.md", "read me")
    put(folder / "info.json", '{"description": "x"}')
    return folder


def test_a_folder_is_read_at_any_depth_in_the_order_of_its_names(tmp_path: Path) -> None:
    found = read_documents(tree(tmp_path))
    assert found.texts == ["a", "b1", "b2", "x"]
    names = [each["name"] for each in found.identity["files"]]
    assert names == ["a.NDJSON", "b/1.txt.gz", "b/2.jsonl", "c/deep/x.Parquet"]
    assert set(source_content(str(tmp_path))) >= {f"{tmp_path.name}/{name}" for name in names}


def test_a_split_of_a_folder_is_the_files_of_its_name_at_any_depth(tmp_path: Path) -> None:
    for name in ("en/train-00000-of-00002.jsonl", "en/train-00001-of-00002.jsonl.gz", "en/test.jsonl", "train/x.json"):
        line = json.dumps([{"text": name}]) if name.endswith(".json") else json.dumps({"text": name}) + "\n"
        put(tmp_path / name, gzip.compress(line.encode()) if name.endswith(".gz") else line)
    put(tmp_path / "LICENSE.txt", "free")
    assert read_documents(tmp_path, split="train").texts == [
        "en/train-00000-of-00002.jsonl",
        "en/train-00001-of-00002.jsonl.gz",
    ]
    assert read_documents(tmp_path, split="test").texts == ["en/test.jsonl"]
    with pytest.raises(InputError, match="no split 'dev'; there are: LICENSE, en, test, train"):
        read_documents(tmp_path, split="dev")


def test_json_lists_are_data_where_there_is_nothing_else(tmp_path: Path) -> None:
    put(tmp_path / "b.json", json.dumps(ROWS))
    assert read_documents(tmp_path).texts == TEXTS


@pytest.mark.parametrize(
    ("target", "message"),
    [("../outside.txt", "is a link out of"), ("..", "is a link out of"), ("gone.txt", "is a link to nothing")],
)
def test_links_that_lead_out_of_a_folder_or_nowhere_are_refused(tmp_path: Path, target: str, message: str) -> None:
    put(tmp_path / "outside.txt", "outside")
    put(tmp_path / "folder" / "a.txt", "a")
    (tmp_path / "folder" / "b.txt").symlink_to("a.txt")
    assert read_documents(tmp_path / "folder").texts == ["a", "a"]
    (tmp_path / "folder" / "c.txt").symlink_to(target)
    for look in (read_documents, source_content):
        with pytest.raises(InputError, match=message):
            look(str(tmp_path / "folder"))


def test_the_cache_of_the_hub_has_links_and_is_read(tmp_path: Path) -> None:
    put(tmp_path / "datasets--a--b" / "blobs" / "1", LINES)
    snapshot = tmp_path / "datasets--a--b" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").symlink_to("../../blobs/1")
    assert read_documents(snapshot).texts == TEXTS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: os.mkfifo(path), "is a pipe or a device"),
        (lambda path: path.mkdir(), "holds nothing; expected a text file, rows"),
        (lambda path: put(path / "a.jpg", b"x"), "holds a.jpg; expected a text file, rows"),
        (lambda path: put(path / "a.zip", b"x"), "holds a.zip; expected a text file, rows"),
        (lambda path: put(path / ".a.txt", b"x"), "expected a text file, rows"),
        (lambda path: put(path / "a\udce9.txt", b"x"), "which is not UTF-8: rename it"),
    ],
)
def test_a_source_without_text_is_refused(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "source")
    with pytest.raises(InputError, match=message):
        read_documents(tmp_path / "source")


@pytest.mark.parametrize("source", ["x" * 5000, "~nobodyhere/x"])
def test_a_path_that_cannot_be_is_refused(source: str) -> None:
    for look in (read_documents, source_content, questions.read_question_file):
        with pytest.raises(InputError, match="cannot be read"):
            look(source)  # type: ignore[operator]


# The same rows for questions


@pytest.mark.parametrize("name", ["a.NDJSON", "a.json", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_questions_come_from_the_same_kinds_of_files(tmp_path: Path, name: str) -> None:
    asked = [{"question": "What?", "answer": "red"}, {"question": "Who?", "answer": "Ann"}]
    lines = "".join(json.dumps(row) + "\n" for row in asked)
    contents: dict[str, str | bytes | Callable[[Path], None]] = {
        "a.NDJSON": lines,
        "a.json": json.dumps(asked),
        "a.jsonl.gz": gzip.compress(lines.encode()),
        "a.csv": "question,answer\nWhat?,red\nWho?,Ann\n",
        "a.parquet": lambda path: parquet.write_table(pyarrow.Table.from_pylist([{**each, "choices": None} for each in asked]), path),
    }  # fmt: skip
    found = questions.read_question_file(put(tmp_path / name, contents[name]))
    assert [(each["question"], each["answer"]) for each in found] == [("What?", "red"), ("Who?", "Ann")]


def test_questions_in_a_file_of_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is text by its ending and so has no rows; expected one of \.jsonl"):
        questions.read_question_file(put(tmp_path / "a.txt", '{"question": "What?", "answer": "red"}\n'))


def test_of_columns_only_those_that_are_asked_for_are_read(tmp_path: Path) -> None:
    path = put(tmp_path / "a.parquet", as_parquet)
    assert row_formats.rows_in(path, path.read_bytes(), ["text"]).numbered[0] == (1, {"text": TEXTS[0]})
    assert isinstance(read_documents(path), Documents)
