"""Every source gives its documents in file order; everything wrong with one has a message that says what to do."""

import hashlib
import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from mgaa.errors import InputError, UsageError
from tasks.data.documents import digest, portion, read_documents
from tasks.data.overlap import find_overlap

COMMIT = "b08601e04326c79dfdd32d625aee71d232d685c3"


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_text_file_is_identified_by_its_bytes_and_the_rule_that_cut_it(tmp_path):
    path = tmp_path / "stories.raw"
    path.write_text("één\n<|endoftext|>\ntwo\n", encoding="utf-8")
    found = read_documents(path)
    assert found.texts == ["één", "two"]
    assert found.identity == {
        "kind": "file",
        "split": None,
        "field": "text",
        "separator": "lines holding only <|endoftext|>",
        "files": [{"name": "stories.raw", "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": 24}],
    }
    assert str(tmp_path) not in json.dumps(found.identity)


def test_a_file_has_no_splits_so_it_is_read_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo")
    assert read_documents(path, split="calibration").texts == ["one", "two"]


def test_a_byte_order_mark_is_not_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\ntwo")
    assert read_documents(path).texts == ["one", "two"]


def test_jsonl_gives_a_document_per_line(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "one\n\ntwo", "id": 1}, {"text": ""}, {"text": "three"})
    assert read_documents(path).texts == ["one\n\ntwo", "three"]


def test_another_field_can_be_the_text(tmp_path):
    assert read_documents(jsonl(tmp_path / "a.jsonl", {"body": "one"}), field="body").texts == ["one"]


def test_a_missing_field_is_refused_with_those_there(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"text": "one"}, {"title": "t", "body": "two"})
    with pytest.raises(InputError, match=r"Line 2 of .* no text in field 'text'; there is: title, body"):
        read_documents(path)


def test_a_line_that_is_not_json_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": ')
    with pytest.raises(InputError, match=r"Line 2 of .* is not JSON"):
        read_documents(path)


def test_a_folder_gives_the_file_of_the_split_or_all_files_in_order_of_their_names(tmp_path):
    (tmp_path / "train.txt").write_text("c\nd")
    jsonl(tmp_path / "test.jsonl", {"text": "a"})
    assert read_documents(tmp_path, split="train").texts == ["c", "d"]
    assert read_documents(tmp_path).texts == ["a", "c", "d"]
    assert read_documents(tmp_path).identity["separator"] == "every row, every line"


def test_a_folder_with_a_folder_per_split_works(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "b.txt").write_text("b")
    (tmp_path / "test" / "a.txt").write_text("a")
    assert read_documents(tmp_path, split="test").texts == ["a", "b"]


def test_a_missing_split_is_refused_with_those_there(tmp_path):
    (tmp_path / "train.txt").write_text("a")
    (tmp_path / "valid.txt").write_text("b")
    with pytest.raises(InputError, match="no split 'test'; there are: train, valid"):
        read_documents(tmp_path, split="test")


@pytest.fixture
def rows():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_list([{"text": "one", "id": 1}, {"text": "two", "id": 2}])


def test_a_saved_data_set_is_read(tmp_path, rows):
    rows.save_to_disk(str(tmp_path / "saved"))
    found = read_documents(tmp_path / "saved", split="whatever")
    assert found.texts == ["one", "two"]
    assert "data-00000-of-00001.arrow" in [each["name"] for each in found.identity["files"]]


def test_a_split_of_a_saved_data_set_is_read(tmp_path, rows):
    import datasets

    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(str(tmp_path / "saved"))
    assert read_documents(tmp_path / "saved", split="test").texts == ["two"]
    with pytest.raises(InputError, match="no split 'dev'; there are: train, test"):
        read_documents(tmp_path / "saved", split="dev")


def test_a_folder_of_data_files_is_read(tmp_path, rows):
    (tmp_path / "data").mkdir()
    rows.to_parquet(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    assert read_documents(tmp_path, split="train").texts == ["one", "two"]
    with pytest.raises(InputError, match="no field 'body'; there are: text, id"):
        read_documents(tmp_path, split="train", field="body")
    with pytest.raises(InputError, match=r"'id' .* is not text"):
        read_documents(tmp_path, split="train", field="id")


def test_a_damaged_data_file_is_refused(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="cannot be read by `datasets`"):
        read_documents(tmp_path, split="train")


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds photo.jpg; expected a text file"):
        read_documents(tmp_path)


@pytest.mark.parametrize("source", ["missing.txt", "data/missing.jsonl", "/no/such/folder", "demoo"])
def test_a_missing_file_is_refused(source):
    with pytest.raises(InputError, match=f"no file or folder '{source}'"):
        read_documents(source)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text(" \n\n")
    with pytest.raises(InputError, match="0 documents"):
        read_documents(tmp_path / "a.txt")


def test_bytes_that_are_not_utf_8_are_refused_with_their_place(tmp_path):
    (tmp_path / "a.txt").write_bytes("caf\xe9 noir".encode("latin-1"))
    with pytest.raises(InputError, match=r"not UTF-8: byte 0xe9 at offset 3 .*iconv"):
        read_documents(tmp_path / "a.txt")


def test_a_type_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.PDF").write_bytes(b"%PDF-1.7")
    with pytest.raises(InputError, match=r"ends in .pdf; expected text, rows or columns: unpack or convert it"):
        read_documents(tmp_path / "a.PDF")


def test_a_revision_for_a_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(UsageError, match="no revision or subset"):
        read_documents(tmp_path / "a.txt", revision=COMMIT)


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:12]])
def test_a_hub_id_without_a_commit_is_refused(revision):
    with pytest.raises(UsageError, match="expected a commit of 40 hexadecimal digits"):
        read_documents("Salesforce/wikitext", split="test", revision=revision)


def test_a_hub_id_without_a_network_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError,
        match=r"cannot be loaded from the Hub, which does not answer .*: give a public data set and a network",
    ):
        read_documents("nobody/nothing", split="test", revision=COMMIT, subset="en")


def test_a_hub_data_set_is_read_at_its_revision(monkeypatch, rows):
    import datasets

    asked = {}

    def load(name, subset, *, revision):
        asked.update(name=name, subset=subset, revision=revision)
        return datasets.DatasetDict({"test": rows})

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read_documents("some/texts", split="test", revision=COMMIT, subset="en")
    assert found.texts == ["one", "two"]
    assert asked == {"name": "some/texts", "subset": "en", "revision": COMMIT}
    assert found.identity["revision"] == COMMIT


def test_consecutive_portions_share_and_lose_nothing():
    texts = [str(i) for i in range(2317)]
    cuts = [0, 0.1, 0.4, 0.6, 0.999, 1]
    parts = [portion(texts, start, end) for start, end in pairwise(cuts)]
    assert [text for part in parts for text in part] == texts


@pytest.mark.parametrize(("start", "end"), [(-0.1, 0.5), (0.5, 0.5), (0.6, 0.4), (0.5, 1.1)])
def test_a_range_outside_the_documents_is_refused(start, end):
    with pytest.raises(UsageError, match="0 <= from < to <= 1"):
        portion(["a", "b"], start, end)


def test_a_range_without_a_document_is_refused():
    with pytest.raises(InputError, match="No document of 2"):
        portion(["a", "b"], 0.1, 0.2)


def test_the_digest_tells_where_documents_end():
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest(["ab", "c"]) == digest(iter(["ab", "c"]))


@pytest.mark.skipif("MGAA_EXTERNAL_DATA" not in os.environ, reason="needs the published texts (MGAA_EXTERNAL_DATA)")
@pytest.mark.parametrize(
    ("name", "documents", "rule"),
    [
        ("wikitext-2/train.txt", 600, "WikiText article headings"),
        ("wikitext-2/valid.txt", 60, "WikiText article headings"),
        ("wikitext-2/test.txt", 60, "WikiText article headings"),
        ("wikitext-2/wiki.test.raw", 60, "WikiText article headings"),
        ("ptb/ptb.valid.txt", 3370, "every line"),
        ("tinystories.txt", 2317, "lines holding only <|endoftext|>"),
        ("c4.jsonl", 1000, "every row"),
    ],
)
def test_published_texts_have_their_known_documents_and_portions_that_do_not_overlap(name, documents, rule):
    found = read_documents(Path(os.environ["MGAA_EXTERNAL_DATA"]) / "text" / name)
    assert (len(found.texts), found.identity["separator"]) == (documents, rule)
    assert not find_overlap(portion(found.texts, 0, 0.4), portion(found.texts, 0.6, 1)).is_too_large
