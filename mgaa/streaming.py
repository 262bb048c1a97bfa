"""Calibration in block-outer order: for each decoder block, for each micro-batch.

The hidden states of all calibration tokens are carried from block to block, so only one block's statistics exist at a time, and the
consumer of the stream may store or decompose them before the next block starts. The arguments that a block needs beside its hidden
states (masks, rotary embeddings, positions) come from the model's own forward, run with the blocks' `forward` replaced by
recorders: this works for every architecture and copies no model code.

Legend: s sequences, t tokens of a sequence, h hidden size.
"""

from collections.abc import Callable, Iterable, Iterator
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


@dataclass(frozen=True)
class Measuring:
    """How calibration measures.

    Attributes:
        groups: groups of consecutive sequences whose means are kept.
        batch_size: sequences per forward pass.
        expert_tokens: tokens per channel, below which the covariance of an expert is shrunk.
    """

    groups: int = 32
    batch_size: int = 8
    expert_tokens: float = EXPERT_TOKENS

    def __post_init__(self) -> None:
        if self.groups < 1 or self.batch_size < 1:
            raise UsageError(
                f"groups is {self.groups} and batch_size is {self.batch_size}, expected whole numbers from 1 on"
            )


class Calibration:
    """Calibration tokens on their way through the blocks of a model; they stand before one block after the other.

    With dense inputs a block is measured and passed at once (`stream_statistics`). With compressed inputs the dense block is measured, then
    compressed in place, then the tokens are sent through what has become of it (`mgaa.sequential`). A calibration that is built again and
    advanced through the same blocks holds the same bits.

    Args:
        model: a transformers causal language model with an entry in `mgaa.architectures`, taken apart (`mgaa.fused.unfuse_`), dense, in
            eval mode. Blocks may be compressed later, in place.
        tokens: calibration sequences without padding.
        measuring: how.

    Raises:
        InputError: no tokens, ids outside the vocabulary, or an architecture without an entry.
    """

    def __init__(self, model: PreTrainedModel, tokens: Int[Tensor, "s t"], measuring: Measuring) -> None:
        check_tokens(tokens, model.get_input_embeddings().num_embeddings)
        matrices_of(model)  # refuses a model that was not taken apart, of which linears would be passed over
        self._entry, self._config = architecture_of(model.config.model_type), model.config
        self._blocks, self._measuring, self._sequences = decoder_blocks(model), measuring, len(tokens)
        self._batches = _record(model, self._blocks, tokens, measuring.batch_size)

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    def statistics(self, index: int) -> BlockStatistics:
        """What block `index` does with the tokens before it; they stay where they are.

        Raises:
            InputError: a block that is not what its entry says, or an expert that no token reaches.
            NumericalError: a weight or an activation is not finite (the message names layer and sequence).
        """
        observer = self._observer(index)
        with observer.attached():
            for batch in self._batches:
                self._through(index, batch, observer)
        return observer.finish()

    def advance(self, index: int) -> None:
        """Send the tokens through block `index` as it now is."""
        for batch in self._batches:
            batch.hidden = self._through(index, batch)

    def measure(self, index: int) -> BlockStatistics:
        """`statistics` and `advance` in one pass."""
        observer = self._observer(index)
        with observer.attached():
            for batch in self._batches:
                batch.hidden = self._through(index, batch, observer)
        return observer.finish()

    def cosines(self, index: int) -> BlockStatistics:
        """`measure` without the moments: the cosines of the sublayers alone, for a fraction of the cost."""
        observer = self._observer(index)
        with observer.attached(inputs=False):
            for batch in self._batches:
                batch.hidden = self._through(index, batch, observer)
        return observer.finish()

    def _observer(self, index: int) -> Observer:
        block, path = self._blocks[index], f"{self._entry.blocks}.{index}"
        _check_weights(block, path)
        given = self._measuring
        return Observer(self._entry, self._config, block, path, given.groups, self._sequences, given.expert_tokens)

    @torch.no_grad()
    def _through(self, index: int, batch: "_Batch", observer: Observer | None = None) -> Float[Tensor, "s t h"]:
        positional, named = batch.arguments[index]
        if observer is not None:
            observer.enter(batch.first, batch.hidden)
        hidden = first_of(self._blocks[index](batch.hidden, *positional, **named))
        if observer is not None:
            observer.leave(hidden)
        return hidden


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
        model, tokens: as in `Calibration`, with its errors.
        groups, batch_size, expert_tokens: as in `Measuring`.
    """
    calibration = Calibration(model, tokens, Measuring(groups, batch_size, expert_tokens))
    for index in _counted(calibration):
        yield calibration.measure(index)


def stream_cosines(
    model: PreTrainedModel, tokens: Int[Tensor, "s t"], *, batch_size: int = 8
) -> Iterator[BlockStatistics]:
    """The cosines of every decoder block in order, with dense inputs and without any moment; see `Calibration`."""
    calibration = Calibration(model, tokens, Measuring(batch_size=batch_size))
    for index in _counted(calibration):
        yield calibration.cosines(index)


def _counted(calibration: Calibration) -> Iterable[int]:
    bar: Iterable[int] = tqdm(range(len(calibration)), desc="calibrating blocks", disable=None)
    return bar


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
