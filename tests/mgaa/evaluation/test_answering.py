"""Answers are those of plain generation, whatever goes with them; the loss of a caption is what its logits say."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.evaluation.answering import Accuracy, answer, caption_losses, image_tokens, is_match, majority, normalised
from mgaa.inputs.prompts import Question, encode
from mgaa.models.entries import MULTIMODAL
from tests.support.seeing import picture, processor, tokenizer

Tiny = Callable[..., PreTrainedModel]
TEXTS = ["w1 w2", "w3", "w1 w2", "w4 w5 w6", "w7", "w8 w9", "w2 w1"]
ANSWERS = ["w3 w4", "w3", "w5", "w9 w8 w7", "w1", "w2 w2", "w6"]
SHAPES = [(16, 16), (24, 16), (16, 16), (16, 24), (24, 16), (16, 16), (16, 16)]


@pytest.fixture
def questions() -> list[Question]:
    """Of several lengths, with images of several shapes; the last but one has none."""
    shown = [
        Question(text, given, picture(seed, *shape))
        for seed, (text, given, shape) in enumerate(zip(TEXTS, ANSWERS, SHAPES, strict=True))
    ]
    shown[5] = Question(TEXTS[5], ANSWERS[5])
    return shown


@pytest.mark.parametrize("family", MULTIMODAL)
def test_an_answer_is_that_of_plain_generation_whatever_goes_with_it(
    tiny: Tiny, questions: list[Question], family: str
) -> None:
    model, given = tiny(family), processor(family)
    alone = answer(model, given, questions, batch_size=1, max_new_tokens=6)
    assert answer(model, given, questions, batch_size=64, max_new_tokens=6) == alone
    assert answer(model, given, questions[::-1], batch_size=3, max_new_tokens=6) == alone[::-1]
    for question, found in zip(questions, alone, strict=True):
        inputs = encode([question], given, model.config, answered=False).sequences[0]
        whole = model.generate(**inputs, do_sample=False, max_new_tokens=6)
        assert found == tokenizer().decode(whole[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert len(set(alone)) > 3


def test_answers_are_the_same_however_many_prompts_are_held(
    tiny: Tiny, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = tiny("llava"), processor("llava")
    whole = answer(model, given, questions, max_new_tokens=4)
    losses = caption_losses(model, given, questions, batch_size=2)
    monkeypatch.setattr("mgaa.evaluation.answering._AT_ONCE", 3)
    assert answer(model, given, questions, batch_size=2, max_new_tokens=4) == whole
    parted = caption_losses(model, given, questions, batch_size=2)
    assert parted.counts == losses.counts
    assert parted.losses == pytest.approx(losses.losses, rel=1e-6)


def test_sampling_and_penalties_of_the_config_are_ignored_without_a_warning(
    tiny: Tiny, questions: list[Question], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    model, given = tiny("llava"), processor("llava")
    greedy = answer(model, given, questions)
    own = model.generation_config
    own.update(do_sample=True, temperature=9.0, top_k=3, num_beams=2, repetition_penalty=5.0, min_new_tokens=9)
    assert answer(model, given, questions) == greedy
    assert model.generation_config is own
    assert own.do_sample is True
    assert not caplog.records
    assert not recwarn.list


def test_an_answer_ends_before_the_end_mark_and_at_the_stated_length(tiny: Tiny, questions: list[Question]) -> None:
    model, given = tiny("llava"), processor("llava")
    whole = answer(model, given, questions, max_new_tokens=5)
    assert max(len(each.split()) for each in whole) == 5
    word = whole[0].split()[1]
    model.generation_config.eos_token_id = [tokenizer().convert_tokens_to_ids(word), 62]
    short = answer(model, given, questions, max_new_tokens=5)
    assert len(short[0].split()) == 1
    assert all(word not in each.split() for each in short)


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_in_the_mode_it_came_in(tiny: Tiny, questions: list[Question], training: bool) -> None:
    model, given = tiny("llava").train(training), processor("llava")
    answer(model, given, questions[:1], max_new_tokens=1)
    caption_losses(model, given, questions[:1])
    assert model.training is training


@pytest.mark.parametrize("family", MULTIMODAL)
@pytest.mark.parametrize("batch_size", [1, 64])
def test_the_loss_of_a_caption_is_what_the_logits_of_its_tokens_say(
    tiny: Tiny, questions: list[Question], family: str, batch_size: int
) -> None:
    model, given = tiny(family), processor(family)
    found = caption_losses(model, given, questions, batch_size=batch_size)
    prompts = encode(questions, given, model.config)
    for inputs, count, loss, text in zip(prompts.sequences, prompts.answers, found.losses, ANSWERS, strict=True):
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", MULTIMODAL)
def test_models_of_other_dtypes_answer(tiny: Tiny, questions: list[Question], family: str, dtype: torch.dtype) -> None:
    model, given = tiny(family).to(dtype), processor(family)
    assert len(answer(model, given, questions, max_new_tokens=2)) == len(questions)
    reference = caption_losses(tiny(family), given, questions)
    assert caption_losses(model, given, questions).nll == pytest.approx(reference.nll, rel=0.02)


def test_a_loss_that_is_not_finite_is_an_error_with_the_question(tiny: Tiny, questions: list[Question]) -> None:
    model = tiny("llava")
    nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(NumericalError, match="3 of the 3 losses in the answer to 'w1 w2' are not finite"):
        caption_losses(model, processor("llava"), questions[:1])


def test_a_logit_that_is_not_finite_is_an_error_with_the_question(tiny: Tiny, questions: list[Question]) -> None:
    model = tiny("llava")
    nn.init.constant_(model.lm_head.weight[5:7], math.inf)
    with pytest.raises(NumericalError, match="2 of 64 logits in the answer to 'w3' are not finite"):
        answer(model, processor("llava"), questions[1:3])


def test_an_answer_that_the_template_leaves_out_is_refused(tiny: Tiny, questions: list[Question]) -> None:
    given = processor("llava")
    given.chat_template = "{% for turn in messages if turn.role == 'user' %}<image> w1{% endfor %}"
    with pytest.raises(InputError, match="'w1 w2' has 0 tokens of its answer 'w3 w4'"):
        caption_losses(tiny("llava"), given, questions[:1])


def test_what_cannot_be_answered_is_refused(tiny: Tiny, questions: list[Question]) -> None:
    model, given = tiny("llava"), processor("llava")
    with pytest.raises(UsageError, match="batch_size is 0, expected at least 1"):
        answer(model, given, questions, batch_size=0)
    with pytest.raises(UsageError, match="max_new_tokens is 0, expected at least 1"):
        answer(model, given, questions, max_new_tokens=0)
    with pytest.raises(InputError, match=r"has 20 tokens, which with 45 of an answer .* are more than the model's 64"):
        answer(model, given, questions[:5], max_new_tokens=45)
    with pytest.raises(UsageError, match="no processor with a chat template"):
        answer(model, tokenizer(), questions)
    with pytest.raises(InputError, match="there are 0 questions"):
        caption_losses(model, given, [])
    assert answer(model, given, []) == []


@pytest.mark.parametrize("family", MULTIMODAL)
def test_the_processor_of_another_model_is_refused(tiny: Tiny, questions: list[Question], family: str) -> None:
    model, given = tiny(family), processor(family)
    if family.startswith("qwen"):
        given.image_processor.merge_size = 4
    elif family == "gemma3":
        given.full_image_sequence = given.full_image_sequence.replace("<image>", "<image><image>")
    else:
        given.patch_size = 8 if family != "mistral3" else 16
    asked = [Question("w1", "w2", picture(0, 32, 32))]
    for call in (answer, caption_losses):
        with pytest.raises(InputError, match="expected as many image tokens as its vision tower gives features"):
            call(model, given, asked)


def test_image_tokens_are_counted_per_prompt(tiny: Tiny, questions: list[Question]) -> None:
    assert image_tokens(tiny("llava"), processor("llava"), questions) == [16, 16, 16, 16, 16, 0, 16]
    found = image_tokens(tiny("qwen2_5_vl"), processor("qwen2_5_vl"), questions)
    assert found == [4, 6, 4, 6, 6, 0, 4]


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
    assert majority(["Yes", "yes.", "no", "2"]) == 0.5
    with pytest.raises(InputError, match="there are 0 expected answers"):
        majority([])
