"""Greedy answers of a vision-language model to questions about images.

Prompts of one shape go through the model together (`mgaa.evaluation.prompt_batches`). Generation always takes the most likely token: of the
model's generation config only the special tokens are used, because sampling settings and repetition penalties belong to a chat, not to a
measurement. A logit that is not finite is an error: such a model would still produce an answer. An answer ends before the first end mark
of the model or of its tokenizer, or after `max_new_tokens`.

Legend: b prompts of a batch, n tokens, v vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from mgaa.errors import InputError, NumericalError
from mgaa.evaluation.perplexity import eval_mode
from mgaa.evaluation.prompt_batches import batches, check_positive, chunks, image_token_errors, move_to_model
from mgaa.inputs.prompts import Question, encode
from mgaa.inputs.readers import coerce_arguments, to_run
from mgaa.inputs.readers import processor as processor_of
from mgaa.inputs.values import integer
from mgaa.models.model_inputs import IDS, Inputs
from mgaa.models.processors import Processor, tokenizer_of

PROMPT = (
    "the processor's chat template around one turn of a user, the image before the question, with the generation prompt"
)
"""Rule by which a question becomes a prompt (`mgaa.inputs.prompts`), for an evaluation card."""


@coerce_arguments(model=to_run, processor=processor_of, batch_size=integer, max_new_tokens=integer)
@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    processor: Processor,
    questions: Sequence[Question],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 16,
) -> list[str]:
    """Generate the model's greedy answers, in the order of the questions; the expected answers are not used.

    Args:
        model: used in eval mode and left in the mode it came in.
        processor: the model's own, with a chat template.
        batch_size: prompts per pass through the model, at most.
        max_new_tokens: tokens of an answer, at most.

    Returns:
        Texts without special tokens and surrounding whitespace.

    Raises:
        UsageError: a number below one, or a processor without a chat template.
        InputError: a prompt that does not fit the model, alone or with its answer.
        NumericalError: a logit is not finite (the message names the question).
    """
    check_positive(batch_size=batch_size, max_new_tokens=max_new_tokens)
    tokenizer = tokenizer_of(processor)
    ends = end_token_ids(model, tokenizer)
    texts: list[str] = []
    with (
        eval_mode(model),
        greedy_decoding(model, ends, max_new_tokens),
        tqdm(total=len(questions), desc="answering questions", unit=" questions", disable=None) as bar,
    ):
        for chunk in chunks(questions, batch_size):
            prompts, order = encode(chunk, processor, model.config, answered=False).by_length()
            _check_room(model, prompts.lengths[-1], max_new_tokens)
            answers = [""] * len(chunk)
            for batch in batches(prompts, batch_size):
                asked = [chunk[order[index]].text for index in batch]
                rows = _generate(model, prompts.batch(batch), asked)
                for index, row in zip(batch, rows, strict=True):
                    text = tokenizer.decode(truncate_at_end(row, ends), skip_special_tokens=True)
                    answers[order[index]] = text.strip()
                bar.update(len(batch))
            texts += answers
    return texts


def image_tokens(model: PreTrainedModel, processor: Processor, questions: Sequence[Question]) -> list[int]:
    """Count the image tokens of each prompt; an image that several questions share is processed once.

    Raises:
        UsageError, InputError: as `answer`.
    """
    known: dict[int, int] = {}
    for question in questions:
        if id(question.image) not in known:
            known[id(question.image)] = encode([question], processor, model.config, answered=False).image_tokens
    return [known[id(question.image)] for question in questions]


def end_token_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Return the ids that end an answer; empty where neither model nor tokenizer has one."""
    own = model.generation_config.eos_token_id
    marks = own if isinstance(own, list) else [own]
    return sorted({mark for mark in (*marks, tokenizer.eos_token_id) if mark is not None})


@contextmanager
def greedy_decoding(model: PreTrainedModel, ends: list[int], max_new_tokens: int) -> Iterator[None]:
    """Within this context the model generates greedily; afterwards, according to its generation config again."""
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,  # without effect: ids after an end mark are cut off
    )
    try:
        yield
    finally:
        model.generation_config = own


def truncate_at_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Cut an answer at its first end mark."""
    return ids[: next((index for index, token in enumerate(ids) if token in ends), len(ids))]


class FiniteLogits(LogitsProcessor):  # type: ignore[misc]  # transformers is not followed by types
    """Raises a `NumericalError` that names the prompt where a logit is not finite; changes nothing."""

    def __init__(self, asked: Sequence[str]) -> None:
        self.asked = asked

    def __call__(self, input_ids: Int[Tensor, "b n"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """Return the logits unchanged."""
        finite = scores.isfinite()
        if not bool(finite.all()):
            row, wrong = next(
                (row, int((~entries).sum())) for row, entries in enumerate(finite) if not bool(entries.all())
            )
            raise NumericalError(
                f"{wrong} of {scores.shape[1]} logits in the answer to {self.asked[row]!r} are not finite, expected 0: check the weights, "
                "or load the model in bfloat16 or float32 (`backbone.dtype`)."
            )
        return scores


def _generate(model: PreTrainedModel, inputs: Inputs, asked: Sequence[str]) -> list[list[int]]:
    """Generate the new tokens of each prompt; some of a batch may end before others."""
    arguments = move_to_model(model, inputs)
    ids = arguments[IDS]
    finite = LogitsProcessorList([FiniteLogits(asked)])
    with image_token_errors(arguments):
        whole: Int[Tensor, "b n"] = model.generate(
            **arguments, attention_mask=torch.ones_like(ids), logits_processor=finite
        )
    return whole[:, ids.shape[1] :].tolist()


def _check_room(model: PreTrainedModel, longest: int, max_new_tokens: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest + max_new_tokens > positions:
        raise InputError(
            f"the longest prompt has {longest} tokens, which with {max_new_tokens} of an answer (max_new_tokens) are more than the model's "
            f"{positions} positions: allow fewer, leave the question out, or give smaller images"
        )
