"""Items of the demo's tasks are the texts' own, the same every time, and give nothing away by their form."""

import json
import re

import pytest

from demo.tasks import POOL, continuation, last_word, write
from mgaa.errors import InputError

NOUNS = ["array", "matrix", "kernel", "sample", "vector", "window", "filter", "signal", "buffer", "string"]


def document(number: int) -> str:
    """Made-up documentation with sentences that return to a word."""
    lines = []
    for step in range(30):
        noun, other = NOUNS[(number + step) % 10], NOUNS[(number * 3 + step * 7) % 10]
        lines.append(f"The {noun} number {number}-{step} is copied to the next {other}, which holds another {noun}.")
    return "\n".join(lines)


DOCUMENTS = [document(number) for number in range(40)]


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def test_a_last_word_ends_a_sentence_and_occurs_in_its_context():
    items = last_word(DOCUMENTS)
    assert len(items) == 250
    for item in items:
        assert any(f"{item['context']} {item['target']}." in each for each in DOCUMENTS)
        assert item["target"] in item["context"].split()


def test_the_true_continuation_follows_its_context_and_no_other_choice_does():
    for item in continuation(DOCUMENTS):
        true = [any(f"{item['context']} {choice}" in each for each in DOCUMENTS) for choice in item["choices"]]
        assert true == [index == item["label"] for index in range(4)]


def test_the_choices_have_as_many_words_and_almost_as_many_characters():
    for item in continuation(DOCUMENTS):
        lengths = [len(choice) for choice in item["choices"]]
        assert {len(choice.split()) for choice in item["choices"]} == {6}
        assert max(lengths) - min(lengths) <= 8
        assert len(set(item["choices"])) == 4


def test_labels_are_spread_evenly():
    labels = [item["label"] for item in continuation(DOCUMENTS)]
    assert all(40 <= labels.count(label) <= 85 for label in range(4))


def test_documents_take_turns():
    items = last_word(DOCUMENTS, items=40)
    owners = {next(i for i, each in enumerate(DOCUMENTS) if item["context"] in each) for item in items}
    assert len(owners) == 40


def test_items_are_the_same_every_time_and_another_seed_gives_others(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        write(DOCUMENTS, tmp_path / name, seed=seed)
    for task in ("last_word.jsonl", "continuation.jsonl"):
        first, same, other = ((tmp_path / name / task).read_text() for name in "abc")
        assert first == same != other
        assert len([json.loads(line) for line in first.splitlines()]) == 250


def test_tokenised_text_and_long_lines_give_items_too():
    texts = [flat(each).replace(".", " .").replace(",", " ,") for each in DOCUMENTS]
    items = last_word(texts)
    assert len(items) == 250
    assert all(len(item["context"]) <= 300 for item in items)


def test_texts_that_are_too_short_are_refused():
    with pytest.raises(InputError, match=r"give 0 items for last_word, expected at least 25: .* leave last_word out"):
        last_word(["A short one."] * POOL)


def test_a_single_document_has_no_distractors():
    with pytest.raises(InputError, match=r"0 distractors .* give more documents"):
        continuation(DOCUMENTS[:1])
