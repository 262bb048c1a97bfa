"""Truths of the answers: they are those of plain generation, whatever goes with them."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.evaluation.answering import answer, image_tokens
from mgaa.evaluation.scoring import caption_losses
from mgaa.inputs.prompts import Question, encode
from mgaa.models.entries import MULTIMODAL
from tests.support.seeing import picture, processor, tokenizer

Tiny = Callable[..., PreTrainedModel]


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
    monkeypatch.setattr("mgaa.evaluation.prompt_batches._AT_ONCE", 3)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", MULTIMODAL)
def test_models_of_other_dtypes_answer(tiny: Tiny, questions: list[Question], family: str, dtype: torch.dtype) -> None:
    model, given = tiny(family).to(dtype), processor(family)
    assert len(answer(model, given, questions, max_new_tokens=2)) == len(questions)
    reference = caption_losses(tiny(family), given, questions)
    assert caption_losses(model, given, questions).nll == pytest.approx(reference.nll, rel=0.02)


def test_a_logit_that_is_not_finite_is_an_error_with_the_question(tiny: Tiny, questions: list[Question]) -> None:
    model = tiny("llava")
    nn.init.constant_(model.lm_head.weight[5:7], math.inf)
    with pytest.raises(NumericalError, match="2 of 64 logits in the answer to 'w3' are not finite"):
        answer(model, processor("llava"), questions[1:3])


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
