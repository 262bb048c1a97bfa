"""A continuation is the most likely token, again and again, whatever the model's own settings and whatever else is asked beside it."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from mgaa.errors import InputError, NumericalError
from mgaa.evaluation.continuation import continuations
from tests.support.laboratory import documents, write_tokenizer

PROMPTS = [[5, 9, 40, 3], [7, 2, 60, 11], [8, 8]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(Path(folder), documents(seed=1, number=10))
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def step_by_step(model: Any, prompt: list[int], tokens: int) -> list[int]:
    ids = [*prompt]
    for _ in range(tokens):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_each_token_is_the_most_likely_one_and_prompts_do_not_see_each_other(model: Any, tokenizer: Any) -> None:
    alone = [step_by_step(model, prompt, 6) for prompt in PROMPTS]
    assert all(tokenizer.eos_token_id not in said for said in alone)
    assert continuations(model, tokenizer, PROMPTS, max_new_tokens=6) == alone


def test_the_settings_of_a_chat_change_nothing_and_stay_as_they_were(model: Any, tokenizer: Any) -> None:
    expected = continuations(model, tokenizer, PROMPTS, max_new_tokens=6)
    chatting = copy.deepcopy(model)
    chatting.generation_config.update(do_sample=True, temperature=3.0, repetition_penalty=5.0)
    assert continuations(chatting, tokenizer, PROMPTS, max_new_tokens=6) == expected
    assert chatting.generation_config.do_sample


def test_a_continuation_ends_before_the_end_mark(model: Any, tokenizer: Any) -> None:
    (said,) = continuations(model, tokenizer, PROMPTS[:1], max_new_tokens=6)
    ending = copy.deepcopy(model)
    ending.generation_config.eos_token_id = said[3]
    (shorter,) = continuations(ending, tokenizer, PROMPTS[:1], max_new_tokens=6)
    assert shorter == said[: said.index(said[3])]


def test_no_token_is_said_where_the_model_has_no_position(model: Any, tokenizer: Any) -> None:
    (said,) = continuations(model, tokenizer, [[5] * 30], max_new_tokens=6)
    assert len(said) == 2
    for prompt in ([], [5] * 32):
        with pytest.raises(
            InputError, match=f"a prompt of {len(prompt)} tokens was given to a model with 32 positions"
        ):
            continuations(model, tokenizer, [prompt], max_new_tokens=6)


def test_a_logit_that_is_not_finite_is_an_error(model: Any, tokenizer: Any) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight[3].fill_(float("nan"))
    with pytest.raises(NumericalError, match="1 of 320 logits"):
        continuations(broken, tokenizer, PROMPTS, max_new_tokens=6)
