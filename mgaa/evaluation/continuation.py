"""Greedy continuations of texts: always the most likely token, so that two models are compared and not two random draws.

As in `mgaa.evaluation.answering`, prompts of one length go through the model together, so nothing is padded.
"""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from mgaa.errors import InputError
from mgaa.evaluation.answering import FiniteLogits, end_token_ids, greedy_decoding, truncate_at_end
from mgaa.evaluation.perplexity import eval_mode
from mgaa.inputs.readers import coerce_arguments, processor, to_run
from mgaa.inputs.token_rows import lists
from mgaa.inputs.values import integer


@coerce_arguments(model=to_run, tokenizer=processor, prompts=lists, max_new_tokens=integer)
@torch.inference_mode()
def generate_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
) -> list[list[int]]:
    """Generate the ids that follow each prompt, without the end mark.

    Args:
        model: used in eval mode and left in the mode it came in.
        prompts: ids, with a begin mark where the model has one.
        max_new_tokens: maximum number of ids; fewer where the model has no position for more.

    Raises:
        InputError: an empty prompt, or one that leaves no position.
        NumericalError: a logit is not finite.
    """
    ends = end_token_ids(model, tokenizer)
    continuations: list[list[int]] = [[] for _ in prompts]
    with eval_mode(model):
        for length in sorted({len(prompt) for prompt in prompts}):
            alike = [index for index, prompt in enumerate(prompts) if len(prompt) == length]
            ids = torch.tensor([list(prompts[index]) for index in alike], device=_device(model))
            finite = LogitsProcessorList([FiniteLogits([tokenizer.decode(row) for row in ids.tolist()])])
            with greedy_decoding(model, ends, _room(model, length, max_new_tokens)):
                whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), logits_processor=finite)
            for index, row in zip(alike, whole[:, length:].tolist(), strict=True):
                continuations[index] = truncate_at_end(row, ends)
    return continuations


def _device(model: PreTrainedModel) -> torch.device:
    """Return the device of the embedding; the blocks of a streamed model are elsewhere (`mgaa.blocks.offload`)."""
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def _room(model: PreTrainedModel, length: int, maximum: int) -> int:
    """Return the number of ids that may follow a prompt of this length."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = maximum if positions is None else min(maximum, positions - length)
    if length < 1 or room < 1:
        raise InputError(
            f"a prompt of {length} tokens was given to a model with {positions} positions, expected at least one token, and at least one "
            "position after it: give a longer or a shorter text"
        )
    return room
