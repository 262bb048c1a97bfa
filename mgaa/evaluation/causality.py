"""Check that a model of any architecture can be scored: it takes token ids alone, and no logit depends on a later token.

A perplexity is a product of probabilities of tokens given those before them. An encoder (BERT, or a decoder whose config has `is_causal:
false`) returns logits of the same shape, but they depend on the token that they are scored on. No config expresses this in one way for all
families, so the model is tested: for two sequences that differ only in their second half, a causal model returns the same outputs in the
first half.

Rounding: differences up to half the digits of the dtype (`sqrt(eps)` of the largest number) count as equal. Mixtures of experts put tokens
    of both halves into one matrix product, and so differ by a few units of the last digit (tiny random models of every family in
    transformers 5.23: at most 6e-7 of the largest logit in float32, where 3.5e-4 is allowed); encoders differ in the first digits.

Legend: n tokens of the probe, c channels compared: the vocabulary, or the width of the model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.blocks.blockwise import Blockwise
from mgaa.errors import InputError, MgaaError
from mgaa.inputs.tokens import positions_of
from mgaa.models.model_inputs import IDS

LENGTH = 32
"""Maximum number of tokens of a probe: enough that every kind of attention would look ahead."""


def probe_ids(ids: Int[Tensor, " t"], vocabulary: int) -> Int[Tensor, "2 n"]:
    """Return the beginning of a text, and the same with other tokens in its second half.

    Args:
        ids: at least two tokens.
        vocabulary: number of ids.
    """
    kept = ids[:LENGTH]
    changed = kept.clone()
    changed[len(kept) // 2 :] = (changed[len(kept) // 2 :] + 1) % vocabulary
    return torch.stack((kept, changed))


def check_causal(model: PreTrainedModel, outputs: Float[Tensor, "2 n c"]) -> None:
    """Refuse a model that looks ahead.

    Args:
        outputs: of the model for a `probe_ids`: logits, or hidden states. Non-finite values are left to the caller.

    Raises:
        InputError: the outputs for the first half differ.
    """
    first, other = outputs[:, : outputs.shape[1] // 2]
    if not results_differ(first, other):
        return
    raise InputError(
        f"{type(model).__name__} (model_type {model.config.model_type}) looks ahead: its outputs for a token change by "
        f"{_apart(first, other):.2g} with later tokens, expected 0 up to rounding, so it has no perplexity and there is nothing to "
        "compress it by: give a causal language model (a decoder). If it was trained as one, its config.json must say so: "
        "`is_decoder: true` in the families of BERT, `is_causal: true` or no `use_bidirectional_attention` in others"
    )


@torch.inference_mode()
def check_decoder(model: PreTrainedModel) -> None:
    """Refuse to compress a model that looks ahead, by its first block, which is loaded alone where blocks are offloaded.

    Args:
        model: with an entry in `mgaa.models.entries`, in eval mode.

    Raises:
        InputError: its first block looks ahead. Entries describe decoders, but a config may disable their masks.
    """
    vocabulary: int = model.get_input_embeddings().num_embeddings
    length = min(LENGTH, positions_of(model.config) or LENGTH)
    blockwise = Blockwise(model, [{IDS: probe_ids(torch.arange(length) % vocabulary, vocabulary)}])
    blockwise.advance(0)
    check_causal(model, blockwise.hidden(0))


def results_differ(one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> bool:
    """Return whether two results of the same computation differ by more than rounding; non-finite values are ignored."""
    allowed = torch.finfo(one.dtype).eps ** 0.5 * float(one.abs().max())
    return bool(_apart(one, other) > allowed)


def _apart(one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> float:
    return float((one.double() - other.double()).abs().max())


@contextmanager
def translate_forward_errors(model: PreTrainedModel, tokens: int) -> Iterator[None]:
    """Turn whatever a model of unknown architecture raises on token ids alone into an `InputError` with its cause.

    Args:
        tokens: length of the sequences.

    Raises:
        InputError: the model raises anything but our own errors and those of memory.
    """
    try:
        yield
    except (MgaaError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InputError(
            f"{type(model).__name__} (model_type {model.config.model_type}) does not accept {tokens} token ids alone ({cause}): if it has "
            "fewer positions, take shorter windows (`length`); if it needs further inputs, or settings that its config.json does "
            "not have, it cannot be evaluated"
        ) from error
