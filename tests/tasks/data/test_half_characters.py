"""A line of a user's file that cannot be used is named, whichever of our files of lines it is in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgaa.errors import InputError
from tasks.data import documents, questions
from tasks.evaluation.scorable import check_texts

HALF = "half \ud800 of one"
READERS: dict[str, tuple[Callable[[Path], object], list[dict[str, Any]]]] = {
    "documents": (documents.read_documents, [{"text": "one"}, {"text": HALF}]),
    "questions": (
        questions.read_question_file,
        [{"question": "What?", "answer": "red"}, {"question": "What?", "answer": HALF}],
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_half_a_character_is_named_with_its_line(tmp_path: Path, reader: str) -> None:
    read, rows = READERS[reader]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"Line 2 of .*rows.jsonl has '\\ud800' in its text, half of a character"):
        read(path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("line", ["[" * 100_000, '{"text": ', '{"text": 1' + "0" * 5000 + "}"])
def test_a_line_that_json_cannot_read_is_named(tmp_path: Path, reader: str, line: str) -> None:
    read, rows = READERS[reader]
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(rows[0])}\n{line}\n")
    with pytest.raises(InputError, match=r"Line 2 of .* is not JSON"):
        read(path)


def test_half_a_character_in_a_field_that_is_not_read_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "one \U0001f600", "note": HALF}))
    assert documents.read_documents(path).texts == ["one \U0001f600"]


def test_half_a_character_in_an_item_is_named_with_its_line(tmp_path: Path) -> None:
    items = [{"context": "a \U0001f600", "target": "b"}, {"context": "a", "target": HALF}]
    (tmp_path / "last_word.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    with pytest.raises(InputError, match=r"Line 2 of .*last_word.jsonl has '\\ud800'"):
        check_texts(tmp_path / "last_word.jsonl")
