"""Truths of the scores: the loss of a caption is what its logits say; answers match after normalisation only."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from mgaa.errors import InputError, NumericalError
from mgaa.evaluation.scoring import Accuracy, caption_losses, is_match, majority_accuracy, normalised
from mgaa.inputs.prompts import Question, encode
from mgaa.models.entries import MULTIMODAL
from tests.support.seeing import processor

Tiny = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("family", MULTIMODAL)
@pytest.mark.parametrize("batch_size", [1, 64])
def test_the_loss_of_a_caption_is_what_the_logits_of_its_tokens_say(
    tiny: Tiny, questions: list[Question], family: str, batch_size: int
) -> None:
    model, given = tiny(family), processor(family)
    found = caption_losses(model, given, questions, batch_size=batch_size)
    prompts = encode(questions, given, model.config)
    for inputs, count, loss, text in zip(
        prompts.sequences, prompts.answers, found.losses, [question.answer for question in questions], strict=True
    ):
        assert count == len(text.split()) + 1  # the mark that ends it
        with torch.no_grad():
            logits = model(**inputs).logits[0].double()
        ids = inputs["input_ids"][0]
        places = range(len(ids) - count, len(ids))
        expected = -sum(float(logits[place - 1].log_softmax(-1)[ids[place]]) for place in places)
        assert loss == pytest.approx(expected, rel=1e-5)
    assert found.counts == prompts.answers


def test_perplexity_and_standard_error_of_captions_are_those_of_a_ratio_of_sums(
    tiny: Tiny, questions: list[Question]
) -> None:
    found = caption_losses(tiny("llava"), processor("llava"), questions)
    mean = sum(found.losses) / sum(found.counts)
    assert found.nll == pytest.approx(mean, rel=1e-12)
    assert found.perplexity == pytest.approx(math.exp(mean), rel=1e-12)
    scatter = sum((loss - mean * count) ** 2 for loss, count in zip(found.losses, found.counts, strict=True))
    number = len(questions)
    assert found.standard_error == pytest.approx(math.sqrt(number / (number - 1) * scatter) / sum(found.counts))


def test_the_loss_of_one_caption_has_no_standard_error(tiny: Tiny, questions: list[Question]) -> None:
    assert caption_losses(tiny("llava"), processor("llava"), questions[:1]).standard_error is None


def test_a_loss_that_is_not_finite_is_an_error_with_the_question(tiny: Tiny, questions: list[Question]) -> None:
    model = tiny("llava")
    nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(NumericalError, match="3 of the 3 losses in the answer to 'w1 w2' are not finite"):
        caption_losses(model, processor("llava"), questions[:1])


def test_an_answer_that_the_template_leaves_out_is_refused(tiny: Tiny, questions: list[Question]) -> None:
    given = processor("llava")
    given.chat_template = "{% for turn in messages if turn.role == 'user' %}<image> w1{% endfor %}"
    with pytest.raises(InputError, match="'w1 w2' has 0 tokens of its answer 'w3 w4'"):
        caption_losses(tiny("llava"), given, questions[:1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Yes.", "yes"),
        ("  The  red\n car ", "red car"),
        ("An apple", "apple"),
        ("A", "a"),
        ("the a", "the a"),
        ("what? no!", "what? no"),
        ("3.5", "3.5"),
        ("one, two;", "one, two"),
        ("two . . .", "two"),
        ("Ｙｅｓ！", "yes"),
        ("ﬁsh", "fish"),
        ("ÉTÉ", "été"),
        ("theatre", "theatre"),
        ("don't", "don't"),
        ("2", "2"),
        ("two", "two"),
        ("?", "?"),
        ("", ""),
    ],
)
def test_normalisation(given: str, expected: str) -> None:
    assert normalised(given) == expected
    assert normalised(expected) == expected


def test_answers_match_after_normalisation_only() -> None:
    assert is_match("The Red car.", "red  car")
    assert not is_match("red", "red car")
    assert not is_match("", "A")
    assert not is_match("", ".")
    assert not is_match("2", "two")


def test_accuracy_counts_in_all_and_by_type() -> None:
    found = Accuracy.of([True, False, True, True])
    assert (found.correct, found.count, found.accuracy) == (3, 4, 0.75)
    assert found.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert Accuracy.of([False]).stderr is None
    parts = Accuracy.by_type([True, False, True], ["number", "other", "number"])
    assert [*parts.items()] == [("number", Accuracy(2, 2)), ("other", Accuracy(0, 1))]
    with pytest.raises(InputError, match="there are 0 answers"):
        Accuracy.of([])


def test_the_majority_is_that_of_normalised_answers() -> None:
    assert majority_accuracy(["Yes", "yes.", "no", "2"]) == 0.5
    with pytest.raises(InputError, match="there are 0 expected answers"):
        majority_accuracy([])
