"""A protocol gives the perplexity of the field's own lines of code: rows joined as they are, tokenized once, whole windows."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mgaa.errors import InputError, UsageError
from tasks.artifacts.files import CARD, PERPLEXITY, read_table
from tasks.artifacts.specs import WindowSpec
from tasks.cache.artifact import Artifact, Store
from tasks.data import protocols
from tasks.data.documents import read_documents
from tasks.steps.load_backbone import architecture_digest, identify, load_backbone
from tasks.steps.measure_perplexity import measure_perplexity
from tasks.steps.read_texts import READING, read_texts, source_content
from tasks.steps.tokenize import tokenize
from tests.support.processes import ROOT

DEMO = ROOT / "models" / "demo"
LENGTH = 48
WIKITEXT = (
    " \n = A crab = \n \n A crab <unk> is a small animal . It lives in water . \n \n \n = = Life = = \n \n It eats . \n"
)
ROWS = [
    "",
    " = A crab = \n",
    "",
    " A crab <unk> is a small animal . It lives in water . \n",
    "",
    "",
    " = = Life = = \n",
    "",
    " It eats . \n",
]
"""What the data set on the Hub has for the lines of `WIKITEXT`."""
SECTION: dict[str, Any] = {"split": None, "revision": None, "subset": None, "field": "text", "separator": "auto"}
SECTION |= {"form": "text", "nulls": "stop", "from": 0.0, "to": 1.0}


def reference(folder: Path, text: str, length: int, windows: int | None = None) -> float:
    """The perplexity as GPTQ and those after it compute it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    losses = []
    for window in ids[: len(ids) // length * length].view(-1, length)[:windows]:
        with torch.inference_mode():
            losses.append(model(input_ids=window[None], labels=window[None]).loss.double())
    return math.exp(torch.stack(losses).mean())


def tokens_of(
    store: Store, backbone: Artifact, given: dict[str, Any], *, length: int, separator: str = "auto"
) -> Artifact:
    section = {key: value for key, value in given.items() if key in (*READING, "protocol")}
    texts = read_texts.fn(
        store, sections={"evaluation": section}, content={"evaluation": source_content(given["source"])}
    )
    cut = {"length": length, "samples": None, "seed": 0, "protocol": given["protocol"], "separator": separator}
    tokens: Artifact = tokenize.fn(store, backbone, texts, section="evaluation", **cut)
    return tokens


def load(store: Store, folder: Path) -> Artifact:
    options = {"dtype": "float32", "files": identify(str(folder), None), "parts": ["decoder"]}
    architecture = architecture_digest(str(folder), None)
    backbone: Artifact = load_backbone.fn(
        store, source=str(folder), revision=None, architecture=architecture, **options
    )
    return backbone


def measured(store: Store, backbone: Artifact, tokens: Artifact, length: int) -> float:
    windows = WindowSpec(length, None, 8)
    found = read_table(store, measure_perplexity.fn(store, backbone, tokens, windows=windows, device="cpu"), PERPLEXITY)
    perplexity: float = found["perplexity"]
    return perplexity


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def backbone(store: Store) -> Artifact:
    return load(store, DEMO)


def write(folder: Path, protocol: str) -> tuple[Path, list[str]]:
    """A source, and the rows of its data set."""
    if protocol == "wikitext2":
        (folder / "wiki.test.raw").write_text(WIKITEXT * 4, encoding="utf-8")
        return folder / "wiki.test.raw", ROWS * 4
    rows = [f"row {number} has a few words\nand <unk> .  " for number in range(30)]
    field = protocols.PROTOCOLS[protocol].field
    (folder / "rows.jsonl").write_text("".join(json.dumps({field: row}) + "\n" for row in rows), encoding="utf-8")
    return folder / "rows.jsonl", rows


@pytest.mark.parametrize(("protocol", "separator"), [("wikitext2", "\n\n"), ("ptb", " "), ("c4", " ")])
def test_a_perplexity_is_that_of_an_independent_implementation(
    store: Store, backbone: Artifact, tmp_path: Path, protocol: str, separator: str
) -> None:
    source, rows = write(tmp_path, protocol)
    tokens = tokens_of(store, backbone, {**SECTION, "source": str(source), "protocol": protocol}, length=LENGTH)
    card, text = read_table(store, tokens, CARD), separator.join(rows)
    expected = reference(DEMO, text, LENGTH)
    assert measured(store, backbone, tokens, LENGTH) == pytest.approx(expected, rel=1e-6)
    assert (card["documents"], card["bytes"], card["bos_rule"]) == (len(rows), len(text), "no mark added")
    assert card["tokens"] == card["stream_tokens"] - card["protocol"]["left_out_tokens"]
    assert 0 < card["protocol"]["left_out_tokens"] < LENGTH
    assert (card["protocol"]["name"], card["protocol"]["separator"]) == (protocol, separator)


def test_c4_takes_the_first_rows_and_the_first_windows(
    store: Store, backbone: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = protocols.Protocol(separator=" ", field="text", row=None, rows=20, windows=3)
    monkeypatch.setitem(protocols.PROTOCOLS, "c4", fewer)
    source, rows = write(tmp_path, "c4")
    tokens = tokens_of(store, backbone, {**SECTION, "source": str(source), "protocol": "c4"}, length=LENGTH)
    assert read_table(store, tokens, CARD)["documents"] == 20
    assert read_table(store, tokens, CARD)["tokens"] == 3 * LENGTH
    expected = reference(DEMO, " ".join(rows[:20]), LENGTH, windows=3)
    assert measured(store, backbone, tokens, LENGTH) == pytest.approx(expected, rel=1e-6)


def test_another_separator_can_be_stated(store: Store, backbone: Artifact, tmp_path: Path) -> None:
    source, rows = write(tmp_path, "ptb")
    given = {**SECTION, "source": str(source), "protocol": "ptb"}
    card = read_table(store, tokens_of(store, backbone, given, length=LENGTH, separator="\n\n"), CARD)
    assert (card["protocol"]["separator"], card["bytes"]) == ("\n\n", len("\n\n".join(rows)))


def test_a_text_too_short_for_one_window_is_refused(store: Store, backbone: Artifact, tmp_path: Path) -> None:
    source, _ = write(tmp_path, "wikitext2")
    given = {**SECTION, "source": str(source), "protocol": "wikitext2"}
    with pytest.raises(InputError, match=r"tokens, which fill 0 windows of 512 tokens, but 1 are needed"):
        tokens_of(store, backbone, given, length=512)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_lines_of_wikitext_are_the_rows_of_its_data_set(tmp_path: Path, end: str) -> None:
    (tmp_path / "wiki.test.raw").write_text(WIKITEXT, newline=end, encoding="utf-8")
    found = read_documents(tmp_path / "wiki.test.raw", protocol="wikitext2")
    assert found.texts == ROWS
    assert found.identity["separator"] == "lines as rows, by the protocol wikitext2"


def test_rows_of_a_table_stay_as_they_are(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ROWS}), tmp_path / "test.parquet")
    assert read_documents(tmp_path / "test.parquet", protocol="wikitext2").texts == ROWS


def test_the_sentences_of_ptb_are_lines_without_blanks_around_them_or_the_column_sentence(tmp_path: Path) -> None:
    (tmp_path / "ptb.test.txt").write_text(" no it was n't \n but <unk> \n")
    assert read_documents(tmp_path / "ptb.test.txt", protocol="ptb").texts == ["no it was n't", "but <unk>"]
    (tmp_path / "a.jsonl").write_text('{"sentence": "one "}\n')
    assert read_documents(tmp_path / "a.jsonl", protocol="ptb").texts == ["one "]


def test_c4_in_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c4.txt").write_text("one\ntwo\n")
    with pytest.raises(UsageError, match=r"'c4', but the source is a text file, .*: give rows"):
        read_documents(tmp_path / "c4.txt", protocol="c4")


@pytest.mark.nightly
@pytest.mark.skipif("MGAA_EXTERNAL_DATA" not in os.environ, reason="needs the published texts (MGAA_EXTERNAL_DATA)")
def test_the_whole_test_file_of_wikitext_gives_the_number_of_an_independent_implementation(tmp_path: Path) -> None:
    data, store = Path(os.environ["MGAA_EXTERNAL_DATA"]), Store(tmp_path)
    source, folder = data / "text" / "wikitext-2" / "wiki.test.raw", data / "backbones" / "wiki4m"
    lines = source.read_text(encoding="utf-8").split("\n")[:-1]
    text = "\n\n".join(f"{line}\n" if line.strip() else "" for line in lines)
    model = load(store, folder)
    tokens = tokens_of(store, model, {**SECTION, "source": str(source), "protocol": "wikitext2"}, length=1024)
    found = measured(store, model, tokens, 1024)
    assert found == pytest.approx(reference(folder, text, 1024), rel=1e-6)
    assert found == pytest.approx(119.493105, rel=1e-5)
