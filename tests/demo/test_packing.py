"""Rows of tokens: every document behind `<s>`, every token predicted once, batches repeatable."""

from itertools import islice

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from demo import corpus, packing

ENCODED = [torch.tensor([0, *range(start, start + 30)]) for start in (100, 200, 300, 400)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(corpus.RECORD.parent)


def test_every_token_but_the_first_is_predicted_once() -> None:
    rows = packing.rows(ENCODED, 10)
    stream = torch.cat(ENCODED)
    assert rows[:, 1:].flatten().equal(stream[1 : 1 + rows[:, 1:].numel()])
    assert len(stream) - 1 - rows[:, 1:].numel() < 10


def test_batches_repeat_with_the_seed_and_differ_without() -> None:
    def first(seed: int) -> torch.Tensor:
        return torch.stack(list(islice(packing.batches(ENCODED, batch=2, length=10, seed=seed), 12)))

    assert first(0).equal(first(0))
    assert not first(0).equal(first(1))


def test_every_document_starts_with_bos_and_survives_the_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    documents = [corpus.Document("a.py", "Naïve\n\n    x = 1\t# ≥ 2"), corpus.Document("b.py", "\x00 odd \U0001f600")]
    encoded = packing.encode(tokenizer, documents)
    assert [int(each[0]) for each in encoded] == [tokenizer.bos_token_id] * 2 == [0, 0]
    assert [tokenizer.decode(each[1:]) for each in encoded] == [document.text for document in documents]


def test_the_vocabulary_has_4096_tokens_and_adds_none_by_itself(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 4096
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    ids = tokenizer("Return the array.")["input_ids"]
    assert not {0, 1}.intersection(ids)
