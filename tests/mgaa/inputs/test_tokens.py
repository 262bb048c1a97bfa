"""Packing adds one mark per document and nothing else; windows neither overlap nor depend on anything but the seed."""

import pytest
import torch

from mgaa.errors import InputError, UsageError
from mgaa.inputs.tokens import check_vocabulary, digest, join, pack, windows

BOS, EOS = 61, 62


def test_each_document_is_preceded_by_the_beginning_mark(words):
    stream = pack(["w1 w2", "w3"], words)
    assert stream.ids.tolist() == [BOS, 1, 2, BOS, 3]
    assert (len(stream), stream.documents, stream.bytes, stream.rule) == (5, 2, 7, "<s> before each document")


def test_without_a_beginning_mark_each_document_is_followed_by_the_end_mark(words):
    words.bos_token = None
    stream = pack(["w1 w2", "w3"], words)
    assert stream.ids.tolist() == [1, 2, EOS, 3, EOS]
    assert stream.rule.startswith("</s> after each document")


def test_without_any_mark_documents_are_joined_as_they_are(words):
    words.bos_token = words.eos_token = None
    stream = pack(["w1 w2", "w3"], words)
    assert stream.ids.tolist() == [1, 2, 3]
    assert stream.rule.startswith("no mark")


def test_truncation_and_padding_in_the_tokenizers_file_are_ignored(words):
    words.backend_tokenizer.enable_truncation(2)
    words.backend_tokenizer.enable_padding(length=8)
    assert pack(["w1 w2 w3 w4", "w5"], words).ids.tolist() == [BOS, 1, 2, 3, 4, BOS, 5]


def test_a_mark_which_the_tokenizer_adds_by_itself_is_not_added_twice(words):
    from tokenizers.processors import TemplateProcessing

    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    assert pack(["w1"], words).ids.tolist() == [BOS, 1]


def test_unknown_tokens_are_counted(words):
    assert pack(["w1 nobody knows", "w2 w3"], words).unknown == 2


def test_packing_many_documents_equals_packing_them_one_by_one(words):
    documents = [f"w{i % 60} w{i % 7}" for i in range(1100)]
    apart = torch.cat([pack([each], words).ids for each in documents])
    assert torch.equal(pack(documents, words).ids, apart)


def test_bytes_are_those_of_utf_8(words):
    assert pack(["é€"], words).bytes == 5


def test_no_documents_are_refused(words):
    with pytest.raises(InputError, match="0 documents"):
        pack([], words)


def test_all_windows_are_the_stream_without_its_tail():
    stream = torch.arange(23)
    assert windows(stream, 5).flatten().tolist() == list(range(20))


def test_drawn_windows_are_distinct_and_in_file_order():
    drawn = windows(torch.arange(1000), 10, samples=40, seed=3)
    starts = drawn[:, 0].tolist()
    assert len(set(starts)) == 40
    assert starts == sorted(starts)
    assert all(start % 10 == 0 for start in starts)


def test_the_seed_alone_decides_which_windows_are_drawn():
    stream = torch.arange(1000)
    same, other = windows(stream, 10, samples=40, seed=3), windows(stream, 10, samples=40, seed=4)
    assert torch.equal(same, windows(stream, 10, samples=40, seed=3))
    assert not torch.equal(same, other)


def test_too_few_tokens_are_refused_with_the_counts():
    with pytest.raises(
        InputError, match=r"23 tokens, which fill 4 windows of 5 tokens, but 6 are needed \(30 tokens\)"
    ):
        windows(torch.arange(23), 5, samples=6)


def test_zero_tokens_are_refused():
    with pytest.raises(InputError, match="0 tokens, which fill 0 windows"):
        windows(torch.arange(0), 5)


@pytest.mark.parametrize(("length", "samples"), [(0, None), (5, 0)])
def test_a_length_or_a_number_below_one_is_refused(length, samples):
    with pytest.raises(UsageError, match="at least one"):
        windows(torch.arange(23), length, samples=samples)


@pytest.mark.parametrize("ids", [[0, 64], [-1, 3]])
def test_ids_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(InputError, match="64 embeddings: use the tokenizer"):
        check_vocabulary(torch.tensor(ids), 64)


def test_the_digest_depends_on_values_and_shape_only():
    ids = torch.arange(12)
    assert digest(ids) == digest(ids.int())
    assert digest(ids) != digest(ids.reshape(3, 4))
    assert digest(ids) != digest(ids.flip(0))


def test_joined_rows_are_one_text_with_the_marks_that_the_tokenizer_itself_adds(words):
    from tokenizers.processors import TemplateProcessing

    stream = join(["", "w1 w2", "", "nobody"], words, separator=" w9 ")
    assert stream.ids.tolist() == [9, 1, 2, 9, 9, 60]
    assert (stream.documents, stream.unknown, stream.rule) == (4, 1, "no mark added")
    assert stream.bytes == len(" w9 w1 w2 w9  w9 nobody")
    words.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    marked = join(["w1", "w2"], words, separator=" ")
    assert marked.ids.tolist() == [BOS, 1, 2]
    assert marked.rule.startswith("<s> once")
    with pytest.raises(InputError, match="0 rows"):
        join([], words, separator=" ")
