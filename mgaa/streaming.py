"""Calibration in block-outer order: for each decoder block, for each micro-batch.

The hidden states of all calibration tokens are carried from block to block, so only one block's statistics exist at a time, and the
consumer of the stream may store or decompose them before the next block starts. The arguments that a block needs beside its hidden
states (masks, rotary embeddings, positions) come from the model's own forward, run with the blocks' `forward` replaced by
recorders: this works for every architecture and copies no model code.

Legend: s sequences, t tokens of a sequence, h hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mgaa.architectures import architecture_of, decoder_blocks, matrices_of
from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.lowrank import non_finite
from mgaa.observing import Observer, first_of
from mgaa.statistics import BlockStatistics
from mgaa.tokens import check_vocabulary

EXPERT_TOKENS = 4.0
"""Tokens per channel, below which the covariance of an expert is shrunk (`mgaa.statistics`)."""


def stream_statistics(
    model: PreTrainedModel,
    tokens: Int[Tensor, "s t"],
    *,
    groups: int = 32,
    batch_size: int = 8,
    expert_tokens: float = EXPERT_TOKENS,
) -> Iterator[BlockStatistics]:
    """Statistics of every decoder block in order, with dense inputs, in one pass over the tokens.

    Args:
        model: a transformers causal language model with an entry in `mgaa.architectures`, taken apart (`mgaa.fused.unfuse_`), in eval mode.
        tokens: calibration sequences without padding.
        groups: groups of consecutive sequences whose means are kept.
        batch_size: sequences per forward pass.
        expert_tokens: tokens per channel, below which the covariance of an expert is shrunk.

    Raises:
        UsageError: fewer than one group, or than one sequence per forward pass.
        InputError: no tokens, ids outside the vocabulary, an architecture without an entry or that is not what its entry says,
            or an expert that no token reaches.
        NumericalError: a weight or an activation is not finite (the message names layer and sequence).
    """
    if groups < 1 or batch_size < 1:
        raise UsageError(f"groups is {groups} and batch_size is {batch_size}, expected whole numbers from 1 on")
    check_tokens(tokens, model.get_input_embeddings().num_embeddings)
    matrices_of(model)  # refuses a model that was not taken apart, of which linears would be passed over
    entry = architecture_of(model.config.model_type)
    blocks = decoder_blocks(model)
    batches = _record(model, blocks, tokens, batch_size)
    for index, block in enumerate(tqdm(blocks, desc="calibrating blocks", disable=None)):
        path = f"{entry.blocks}.{index}"
        _check_weights(block, path)
        observer = Observer(entry, model.config, block, path, groups, len(tokens), expert_tokens)
        with torch.no_grad(), observer.attached():
            for batch in batches:
                observer.enter(batch.first, batch.hidden)
                positional, named = batch.arguments[index]
                batch.hidden = first_of(block(batch.hidden, *positional, **named))
                observer.leave(batch.hidden)
        yield observer.finish()


def check_tokens(tokens: Int[Tensor, "*shape"], vocabulary: int) -> None:
    """Refuse token tensors that cannot calibrate a model with `vocabulary` embeddings.

    Raises:
        InputError: not two-dimensional, empty, or ids outside `[0, vocabulary)`.
    """
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise InputError(
            f"calibration tokens have shape {tuple(tokens.shape)}, expected (sequences, length) with at least one token: "
            "give more text or shorter sequences"
        )
    check_vocabulary(tokens, vocabulary)


def _check_weights(block: nn.Module, path: str) -> None:
    for name, weight in block.named_parameters():
        if bad := non_finite(weight):
            raise NumericalError(
                f"{path}.{name} has {bad} non-finite entries of {weight.numel()}: the model is damaged, load it again"
            )


Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with beside its hidden states: positional, and by name."""


@dataclass
class _Batch:
    first: int
    hidden: Float[Tensor, "s t h"]
    arguments: list[Arguments]


def _record(model: PreTrainedModel, blocks: nn.ModuleList, tokens: Int[Tensor, "s t"], batch_size: int) -> list[_Batch]:
    """Hidden states before the first block, and each block's other arguments, for every micro-batch."""
    batches = []
    device = model.get_input_embeddings().weight.device
    as_tuple = architecture_of(model.config.model_type).returns == "tuple"
    for first in range(0, len(tokens), batch_size):
        calls: list[tuple[Tensor, Arguments]] = []

        def remember(
            hidden: Tensor, *positional: Any, calls: Any = calls, **named: Any
        ) -> Tensor | tuple[Tensor, None]:
            calls.append((hidden, (positional, named)))
            return (hidden, None) if as_tuple else hidden

        with torch.no_grad(), _replaced(blocks, remember):
            model.base_model(input_ids=tokens[first : first + batch_size].to(device), use_cache=False)
        batches.append(_Batch(first, calls[0][0], [arguments for _, arguments in calls]))
    return batches


@contextmanager
def _replaced(blocks: nn.ModuleList, forward: Callable[..., Any]) -> Iterator[None]:
    """Let `forward` stand in for the forward of every block; the modules keep their other attributes."""
    own = [vars(block).get("forward") for block in blocks]  # an instance has one where others have wrapped it
    try:
        for block in blocks:
            block.forward = forward
        yield
    finally:
        for block, wrapped in zip(blocks, own, strict=True):
            del block.forward
            if wrapped is not None:
                block.forward = wrapped
