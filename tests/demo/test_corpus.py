"""The embedded text: the same everywhere, split by content, without near copies across splits."""

import itertools
import json
from pathlib import Path

import pytest

from demo import corpus

WORDS = [f"word{number}" for number in range(400)]


@pytest.fixture(scope="module")
def held_out() -> dict[str, list[corpus.Document]]:
    return corpus.held_out_documents()


def text(start: int, count: int) -> str:
    return " ".join(WORDS[start : start + count])


def place(site: Path, split: str, *texts: str, name: str) -> None:
    """Writes a source file with these docstrings; a comment is varied until its content falls into the split."""
    code = f'"""{texts[0]}"""\n' + "".join(f'def f{n}():\n    """{each}"""\n' for n, each in enumerate(texts[1:]))
    contents = (f"{code}# {number}\n".encode() for number in itertools.count())
    content = next(each for each in contents if corpus.split_of(each) == split)
    (site / "numpy").mkdir(exist_ok=True)
    (site / "numpy" / name).write_bytes(content)


def kept(site: Path, split: str) -> str:
    return "\n\n".join(document.text for document in corpus.splits(site)[split])


@pytest.mark.slow
def test_the_installed_text_is_the_one_the_backbone_was_trained_with(
    held_out: dict[str, list[corpus.Document]],
) -> None:
    assert corpus.check(held_out) == []


@pytest.mark.slow
def test_every_held_out_split_is_large_enough(held_out: dict[str, list[corpus.Document]]) -> None:
    sizes = {name: sum(len(each.text) for each in documents) for name, documents in held_out.items()}
    assert sizes["test"] > 400_000
    assert sizes["validation"] > 300_000
    assert sizes["calibration"] > 400_000


@pytest.mark.slow
def test_no_file_is_in_two_splits(held_out: dict[str, list[corpus.Document]]) -> None:
    paths = [document.path for documents in held_out.values() for document in documents]
    assert len(paths) == len(set(paths))


@pytest.mark.slow
def test_no_held_out_document_shares_half_its_shingles_with_another_split(
    held_out: dict[str, list[corpus.Document]],
) -> None:
    shingles = {name: [corpus.shingles(each.text) for each in documents] for name, documents in held_out.items()}
    for one, other in itertools.permutations(shingles, 2):
        everything = set().union(*shingles[other])
        assert all(2 * len(own & everything) <= len(own) for own in shingles[one])


def test_a_copy_of_a_test_docstring_is_dropped_from_train(tmp_path: Path) -> None:
    place(tmp_path, "test", text(0, 60), name="a.py")
    place(tmp_path, "train", text(0, 60), text(100, 60), name="b.py")
    assert kept(tmp_path, "test") == text(0, 60)
    assert kept(tmp_path, "train") == text(100, 60)


def test_a_training_docstring_that_contains_a_test_docstring_is_dropped(tmp_path: Path) -> None:
    place(tmp_path, "test", text(0, 40), name="a.py")
    place(tmp_path, "train", text(0, 300), text(300, 60), name="b.py")
    assert kept(tmp_path, "train") == text(300, 60)


def test_a_docstring_that_repeats_a_fifth_of_another_stays(tmp_path: Path) -> None:
    place(tmp_path, "test", text(0, 100), name="a.py")
    place(tmp_path, "train", text(80, 100), name="b.py")
    assert kept(tmp_path, "train") == text(80, 100)


def test_the_held_out_text_does_not_depend_on_the_training_files(tmp_path: Path) -> None:
    place(tmp_path, "test", text(0, 60), name="z.py")
    alone = corpus.held_out_documents(tmp_path)
    place(tmp_path, "train", text(0, 60), name="a.py")
    assert corpus.held_out_documents(tmp_path) == alone


def test_short_docstrings_tests_and_version_files_are_left_out(tmp_path: Path) -> None:
    place(tmp_path, "train", "Too short.", text(0, 30), name="a.py")
    place(tmp_path, "train", text(100, 60), name="version.py")
    place(tmp_path, "train", text(200, 60), name="test_a.py")
    assert kept(tmp_path, "train") == text(0, 30)


def test_a_file_that_does_not_parse_is_left_out_and_counted(tmp_path: Path) -> None:
    place(tmp_path, "train", text(0, 60), name="a.py")
    place(tmp_path, "train", text(100, 60) + '"""\ndef broken(:\n"""', name="b.py")
    with pytest.warns(UserWarning, match=r"1 files were left out .*b\.py"):
        assert kept(tmp_path, "train") == text(0, 60)


@pytest.mark.slow
def test_a_differing_text_is_reported_and_is_no_error(
    held_out: dict[str, list[corpus.Document]], tmp_path: Path
) -> None:
    record = json.loads(corpus.RECORD.read_text())
    record["splits"]["test"]["sha256"] = "0" * 64
    record["versions"]["scipy"] = "0.1"
    changed = tmp_path / "training.json"
    changed.write_text(json.dumps(record))
    (message,) = corpus.check(held_out, changed)
    assert "test text differs" in message
    assert "scipy" in message
    assert "constraints.txt" in message
