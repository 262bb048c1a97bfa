"""Samples come from evaluation texts that are long enough, and hold what was given, what the text goes on with and what the model says."""

import json
import shutil
from pathlib import Path

import pytest

from mgaa.errors import InputError, UsageError
from tasks.artifacts.files import SAMPLES, read_table, texts_of
from tasks.cache.artifact import Artifact, Store
from tasks.steps.generate import choose_texts, generate
from tests.support.finished import Finished, finished_run


@pytest.fixture
def run() -> Finished:
    return finished_run()


@pytest.fixture
def store(run: Finished, tmp_path: Path) -> Store:
    """A store of the test's own, in which only the backbone is read."""
    store = Store(tmp_path / "store")
    shutil.copytree(run.store.path_of(run.results.backbone), store.path_of(run.results.backbone))
    return store


def texts(store: Store, *given: str) -> Artifact:
    with store.draft_folder("texts") as out:
        (out / "evaluation.jsonl").write_text("".join(json.dumps(text) + "\n" for text in given))
        return store.seal(out, "texts", {"task": "read_texts", "inputs": {}})


@pytest.mark.parametrize(
    ("lengths", "number", "expected"),
    [
        ([50] * 10, 5, [0, 2, 4, 6, 8]),
        ([5, 50, 5, 50, 50, 5], 2, [1, 3]),
        ([5, 50, 5], 2, [0, 1]),  # too few are long
        ([50, 50], 4, [0, 1]),
        ([], 4, []),
    ],
)
def test_texts_lie_evenly_among_those_that_are_long_enough(
    lengths: list[int], number: int, expected: list[int]
) -> None:
    assert choose_texts(["x" * length for length in lengths], number, 40) == expected


def test_the_prompt_and_what_follows_are_the_text(run: Finished) -> None:
    found = read_table(run.store, run.results.samples["dense"], SAMPLES)
    documents = texts_of(run.store, run.results.texts, "evaluation")
    given = run.parameters.evaluation.samples
    assert len(found["samples"]) == given.number
    for sample in found["samples"]:
        words = documents[sample["document"]].split()
        assert sample["prompt"].split() == words[: len(sample["prompt"].split())]
        assert sample["reference"].split() == words[len(sample["prompt"].split()) :][: given.tokens]
        assert 0 < len(sample["ids"]) <= given.tokens
    assert (found["card"]["decoding"], found["card"]["bos_rule"]) == ("greedy", "<s> before each document")


def test_a_short_text_is_halved_and_one_of_a_single_token_is_left_out(run: Finished, store: Store) -> None:
    given = texts(store, "w1", "w1 w2 w3 w4 w5")
    options = {"number": 2, "prompt": 8, "tokens": 8, "prompts": [], "chats": [], "device": "cpu"}
    (sample,) = read_table(store, generate.fn(store, run.results.backbone, given, **options), SAMPLES)["samples"]
    assert (sample["document"], sample["prompt"], sample["reference"]) == (1, "w1 w2", "w3 w4 w5")
    with pytest.raises(InputError, match="No evaluation text has two tokens"):
        generate.fn(store, run.results.backbone, texts(store, "w1"), **options)


def test_prompts_come_first_and_are_gone_on_with_behind_the_mark_of_a_document(run: Finished, store: Store) -> None:
    given = {"number": 1, "prompt": 8, "tokens": 8, "prompts": ["w1 w2 w3 w4"], "chats": [], "device": "cpu"}
    whole = texts(store, " ".join(f"w{index}" for index in range(1, 40)))
    asked, text = read_table(store, generate.fn(store, run.results.backbone, whole, **given), SAMPLES)["samples"]
    assert (asked["form"], asked["prompt"]) == ("text", "w1 w2 w3 w4")
    alike = read_table(
        store, generate.fn(store, run.results.backbone, whole, **{**given, "prompt": 4, "prompts": []}), SAMPLES
    )
    assert asked["ids"] == alike["samples"][0]["ids"]
    assert text["document"] == 0


def test_a_question_needs_a_chat_template(run: Finished, store: Store) -> None:
    given = {"number": 0, "prompt": 8, "tokens": 8, "prompts": [], "chats": ["w1"], "device": "cpu"}
    with pytest.raises(UsageError, match=r"no chat template: .*set evaluation\.samples\.chats=\[\]"):
        generate.fn(store, run.results.backbone, texts(store, "w1 w2"), **given)
