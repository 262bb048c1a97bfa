"""A wheel is taken only with the pinned content, and nothing in it decides where anything is written."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from demo.wheels import Wheel, fetch_wheel, read_member
from mgaa.errors import InputError

MEMBER = "some_words/data/words.txt"


def make_wheel(folder: Path, **members: str) -> Wheel:
    """A wheel in `folder`, with its digest pinned."""
    wheel = Wheel("some-words", "1.0", "")
    with zipfile.ZipFile(folder / wheel.file, "w") as archive:
        for name, text in {MEMBER: "words", **members}.items():
            archive.writestr(name, text)
    return Wheel("some-words", "1.0", hashlib.sha256((folder / wheel.file).read_bytes()).hexdigest())


def test_a_member_of_a_wheel_in_a_folder_is_read(tmp_path: Path) -> None:
    with fetch_wheel(make_wheel(tmp_path), tmp_path) as path:
        assert read_member(path, MEMBER) == b"words"


def test_a_wheel_of_another_content_is_refused_with_both_digests(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    (tmp_path / wheel.file).write_bytes(b"another")
    with pytest.raises(InputError, match=f"sha256 {hashlib.sha256(b'another').hexdigest()}, expected {wheel.sha256}"):
        fetch_wheel(wheel, tmp_path).__enter__()


def test_a_path_that_leaves_the_folder_is_written_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / "wheels"
    folder.mkdir()
    with fetch_wheel(make_wheel(folder, **{"../outside.txt": "outside"}), folder) as path:
        read_member(path, MEMBER)
    assert [each.name for each in tmp_path.rglob("*")] == ["wheels", path.name]


def test_a_folder_without_the_wheel_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pip download --no-deps some-words==1\.0.*WHEELS=/path/to/folder"):
        fetch_wheel(Wheel("some-words", "1.0", "0"), tmp_path).__enter__()


def test_without_an_index_one_message_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match=r"^some-words==1\.0 cannot be fetched .*WHEELS=/path/to/folder"):
        fetch_wheel(Wheel("some-words", "1.0", "0")).__enter__()


def test_an_index_that_does_not_answer_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "INDEX_URL": "http://127.0.0.1:9/simple",
        "EXTRA_INDEX_URL": "",
        "CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(InputError, match=r"no connection: .*Connection refused"):
        fetch_wheel(Wheel("some-words", "1.0", "0")).__enter__()
