"""Models of any architecture, asked whether they can be scored: do they take token ids alone, and does no logit know a later token?

A perplexity is a product of probabilities of tokens given those before them. An encoder (BERT, or a decoder whose config says
`is_causal: false`) gives logits of the same shape, but they have seen the token that they are scored on. No config says this in one way
for all families, so the model is asked: of two sequences that differ in their second half alone, a causal model says the same about the
first half.

Rounding: what differs up to half the digits of the dtype (`sqrt(eps)` of the largest number) counts as the same. Mixtures of experts put
tokens of both halves into one matrix product, and so differ by a few units of the last digit (tiny random models of every family in
transformers 5.23: at most 6e-7 of the largest logit in float32, where 3.5e-4 is allowed); encoders differ in the first digits.

Legend: n tokens of the probe, c channels of what is compared: the vocabulary, or the width of the model.
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
"""Tokens of a probe at most: enough that every kind of attention would look ahead."""


def probe(ids: Int[Tensor, " t"], vocabulary: int) -> Int[Tensor, "2 n"]:
    """The beginning of a text, and the same with other tokens in its second half.

    Args:
        ids: at least two tokens.
        vocabulary: how many ids there are.
    """
    kept = ids[:LENGTH]
    changed = kept.clone()
    changed[len(kept) // 2 :] = (changed[len(kept) // 2 :] + 1) % vocabulary
    return torch.stack((kept, changed))


def check_causal(model: PreTrainedModel, outputs: Float[Tensor, "2 n c"]) -> None:
    """Refuse a model that looks ahead.

    Args:
        outputs: what it makes of a `probe`: logits, or hidden states. Those that are not finite are left to who uses them.

    Raises:
        InputError: the outputs for the first half differ.
    """
    first, other = outputs[:, : outputs.shape[1] // 2]
    if not differ(first, other):
        return
    raise InputError(
        f"{type(model).__name__} (model_type {model.config.model_type}) looks ahead: what it says about a token changes by "
        f"{_apart(first, other):.2g} with the tokens behind it, expected 0 up to rounding, so it has no perplexity and there is nothing to "
        "compress it by: give a causal language model (a decoder). If it was trained as one, its config.json must say so: "
        "`is_decoder: true` in the families of BERT, `is_causal: true` or no `use_bidirectional_attention` in others"
    )


@torch.inference_mode()
def check_decoder(model: PreTrainedModel) -> None:
    """Refuse to compress a model that looks ahead, by its first block, which is read alone where blocks stay in their files.

    Args:
        model: with an entry in `mgaa.models.entries`, in eval mode.

    Raises:
        InputError: its first block looks ahead. Entries are of decoders, but a config may turn their masks off.
    """
    vocabulary: int = model.get_input_embeddings().num_embeddings
    length = min(LENGTH, positions_of(model.config) or LENGTH)
    line = Blockwise(model, [{IDS: probe(torch.arange(length) % vocabulary, vocabulary)}])
    line.through(0)
    check_causal(model, line.hidden(0))


def differ(one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> bool:
    """Whether two results of the same computation differ by more than rounding; what is not finite does not count."""
    allowed = torch.finfo(one.dtype).eps ** 0.5 * float(one.abs().max())
    return bool(_apart(one, other) > allowed)


def _apart(one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> float:
    return float((one.double() - other.double()).abs().max())


@contextmanager
def reading(model: PreTrainedModel, tokens: int) -> Iterator[None]:
    """Whatever a model of unknown architecture raises over token ids alone becomes an `InputError` with its cause.

    Args:
        tokens: how long the sequences are.

    Raises:
        InputError: the model raises anything but our own errors and those of memory.
    """
    try:
        yield
    except (MgaaError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise InputError(
            f"{type(model).__name__} (model_type {model.config.model_type}) does not read {tokens} token ids alone ({said}): if it has "
            "fewer positions, take shorter windows (`length`); if it needs other inputs beside them, or settings that its config.json does "
            "not have, it cannot be evaluated"
        ) from error
