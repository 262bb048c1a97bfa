"""How a model goes on with texts: token by token the most likely one, so that two models are compared and not two draws.

As in `mgaa.evaluation.answering`, prompts of one length go through the model together, so nothing is padded.
"""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from mgaa.errors import InputError
from mgaa.evaluation.answering import FiniteLogits, before_end, end_marks, greedy
from mgaa.evaluation.perplexity import evaluating
from mgaa.inputs.readers import accepting, processor, to_run
from mgaa.inputs.token_rows import lists
from mgaa.inputs.values import whole


@accepting(model=to_run, tokenizer=processor, prompts=lists, max_new_tokens=whole)
@torch.inference_mode()
def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
) -> list[list[int]]:
    """The ids that the model puts after each prompt, without the mark that ends them.

    Args:
        model: used in eval mode and left in the mode it came in.
        prompts: ids, with the mark that begins a text where the model knows one.
        max_new_tokens: ids at most; fewer where the model has no position for more.

    Raises:
        InputError: an empty prompt, or one that leaves no position.
        NumericalError: a logit is not finite.
    """
    ends = end_marks(model, tokenizer)
    found: list[list[int]] = [[] for _ in prompts]
    with evaluating(model):
        for length in sorted({len(prompt) for prompt in prompts}):
            alike = [index for index, prompt in enumerate(prompts) if len(prompt) == length]
            ids = torch.tensor([list(prompts[index]) for index in alike], device=_device(model))
            finite = LogitsProcessorList([FiniteLogits([tokenizer.decode(row) for row in ids.tolist()])])
            with greedy(model, ends, _room(model, length, max_new_tokens)):
                whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), logits_processor=finite)
            for index, row in zip(alike, whole[:, length:].tolist(), strict=True):
                found[index] = before_end(row, ends)
    return found


def _device(model: PreTrainedModel) -> torch.device:
    """Where ids are looked up; the blocks of a model that is streamed are elsewhere (`mgaa.blocks.offload`)."""
    device: torch.device = model.get_input_embeddings().weight.device
    return device


def _room(model: PreTrainedModel, length: int, wanted: int) -> int:
    """How many ids may follow a prompt of this length."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = wanted if positions is None else min(wanted, positions - length)
    if length < 1 or room < 1:
        raise InputError(
            f"a prompt of {length} tokens was given to a model with {positions} positions, expected at least one token, and at least one "
            "position behind it: give a longer or a shorter text"
        )
    return room
