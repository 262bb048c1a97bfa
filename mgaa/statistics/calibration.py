"""Calibration in block-outer order: for each decoder block, for each micro-batch (`mgaa.blocks.blockwise`).

The hidden states of all calibration tokens are carried from block to block, so only one block's statistics exist at a time, and the
consumer of the stream may store or decompose them before the next block starts. Several workers may share the sequences: each sums what
its own do (`Calibration.measure_sums`), and `merge` gives the bits that one worker would have found (`mgaa.statistics.accumulate`).

Legend: s sequences, t tokens of a sequence.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mgaa.blocks.blockwise import Blockwise
from mgaa.blocks.hidden_states import Place
from mgaa.blocks.offload import load_block
from mgaa.errors import UsageError
from mgaa.inputs.prompts import Prompts
from mgaa.inputs.tokens import check_vocabulary
from mgaa.models.architectures import DECODER, Stack, matrices_of, stacks_of
from mgaa.models.lowrank import check_finite
from mgaa.statistics.block_sums import BlockSums
from mgaa.statistics.hooks import Observer
from mgaa.statistics.shares import Share
from mgaa.statistics.statistics import BlockStatistics

EXPERT_TOKENS = 4.0
"""Tokens per channel, below which the covariance of an expert is shrunk (`mgaa.statistics`)."""

UNREACHED = ("stop", "dense")
"""What can become of experts that no calibration token reaches."""


@dataclass(frozen=True)
class CalibrationSettings:
    """How calibration measures.

    Attributes:
        groups: groups of consecutive sequences whose means are kept.
        batch_size: sequences per forward pass.
        expert_tokens: tokens per channel, below which the covariance of an expert is shrunk.
        unreached: what becomes of experts that no token reaches: `stop` (an error), or `dense` (their matrices stay as they are).
    """

    groups: int = 32
    batch_size: int = 8
    expert_tokens: float = EXPERT_TOKENS
    unreached: str = "stop"

    def __post_init__(self) -> None:
        if self.unreached not in UNREACHED:
            raise UsageError(f"unreached is {self.unreached!r}, expected one of {', '.join(UNREACHED)}")
        if self.groups < 1 or self.batch_size < 1:
            raise UsageError(
                f"groups is {self.groups} and batch_size is {self.batch_size}, expected whole numbers from 1 on"
            )


class Calibration:
    """Calibration tokens on their way through the blocks of a model; they stand before one block after the other.

    With dense inputs a block is measured and passed at once (`stream_statistics`). With compressed inputs the dense block is measured, then
    compressed in place, then the tokens are sent through what has become of it (`mgaa.anchoring.sequential`). A calibration that is built
    again and advanced through the same blocks holds the same bits.

    Args:
        model: a transformers causal language model with an entry in `mgaa.models.entries`, taken apart (`mgaa.models.fused.unfuse_`),
            dense, in eval mode. Blocks may be compressed later, in place.
        tokens: calibration sequences without padding; or prompts, some with images.
        measuring: how.
        stack: the blocks; by default those of the decoder. What is before a block of a vision tower are the patches of images: a
            prompt without one has none.
        share: the sequences that are measured here, where several workers share them.
        place, folder: where the hidden states wait (`mgaa.blocks.hidden_states`).

    Raises:
        InputError: no tokens, ids outside the vocabulary, or an architecture without an entry.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Prompts | Int[Tensor, "s t"],
        measuring: CalibrationSettings,
        *,
        stack: Stack | None = None,
        share: Share | None = None,
        place: Place = "device",
        folder: Path | None = None,
    ) -> None:
        prompts = check_tokens(tokens, model.get_input_embeddings().num_embeddings)
        self._stack, self._measuring = stacks_of(model)[0] if stack is None else stack, measuring
        # refuses a model that was not taken apart, of which linears would be passed over
        matrices_of(model, [self._stack.part])
        self._share = Share(len(prompts)) if share is None else share
        self._ranges = prompts.split_by_shape(self._share.batches(measuring.batch_size))
        self._images: list[Tensor | None] = [prompts.image_mask(each) for each in self._ranges]
        if self._stack.part not in DECODER:
            self._ranges = [each for each in self._ranges if prompts.has_image(each.start)]
            self._images = [None] * len(self._ranges)
            if not self._ranges:
                raise UsageError(
                    f"the {self._stack.part} is to be compressed, but none of the {len(prompts)} calibration sequences has an image: "
                    "calibrate on questions about images (data.calibration.form), or leave it out (backbone.parts)"
                )
        batches = [prompts.batch(each) for each in self._ranges]
        self._line = Blockwise(model, batches, stack=self._stack, place=place, folder=folder)

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._line)

    @property
    def passed(self) -> int:
        """How many blocks the tokens have passed; more than none at the start where an interrupted run is taken up in the folder."""
        return self._line.passed

    def statistics(self, index: int) -> BlockStatistics:
        """What block `index` does with the tokens before it; they stay where they are.

        Raises:
            InputError: a block that is not what its entry says, or an expert that no token reaches.
            NumericalError: a weight or an activation is not finite (the message names layer and sequence).
        """
        return self._watch_block(index, keep=False).finish()

    def advance(self, index: int, *, watch: Any = None) -> None:
        """Send the tokens through block `index` as it now is; `watch` as in `mgaa.blocks.blockwise.Blockwise.advance`."""
        self._line.advance(index, watch=watch)
        self._line.commit()

    @property
    def sequences(self) -> list[range]:
        """Those of every micro-batch."""
        return list(self._ranges)

    def block_input(self, index: int, batch: int) -> tuple[Float[Tensor, "s t h"], Callable[[], Tensor]]:
        """A micro-batch before block `index`, where it stays, and what sends it through; the block must be resident
        (`mgaa.blocks.offload`)."""
        before = self._line.hidden(batch)
        return before.reshape(len(self._ranges[batch]), -1, before.shape[-1]), lambda: self._line.call(
            index, batch, before
        )

    def measure(self, index: int) -> BlockStatistics:
        """`statistics`, in the pass that sends the tokens through the block; `commit` ends it."""
        return self._watch_block(index).finish()

    def measure_sums(self, index: int) -> BlockSums:
        """The same for one of several shares: what is to be merged with the sums of the others (`merge`)."""
        return self._watch_block(index).total()

    def measure_cosines(self, index: int) -> BlockStatistics:
        """`measure` without the moments: the cosines of the sublayers alone, for a fraction of the cost."""
        return self._watch_block(index, inputs=False).finish()

    def commit(self) -> None:
        """The tokens stand behind the block that was measured; where hidden states are kept in a folder, an interrupted run goes on
        there, so
        what was measured must be safe."""
        self._line.commit()

    def close(self) -> None:
        """Forget the hidden states, in files as well."""
        self._line.close()

    def _watch_block(self, index: int, *, keep: bool = True, inputs: bool = True) -> Observer:
        with load_block(self._stack.blocks[index]):
            observer = observer_of(self._stack, index, self._measuring, self._share)
            watch = SequenceObserver(observer, self._ranges, self._images)
            with observer.attach(inputs=inputs):
                self._line.advance(index, keep=keep, watch=watch)
        return observer


@dataclass(frozen=True)
class SequenceObserver:
    """An observer that is told the sequence at which a micro-batch begins."""

    observer: Observer
    ranges: list[range]
    images: list[Tensor | None]

    def enter(self, batch: int, hidden: Tensor) -> None:
        """A micro-batch enters the block."""
        sequences = self.ranges[batch]
        self.observer.enter(sequences.start, hidden.reshape(len(sequences), -1, hidden.shape[-1]), self.images[batch])

    def leave(self, hidden: Tensor) -> None:
        """It leaves the block."""
        self.observer.leave(hidden)


def observer_of(stack: Stack, index: int, measuring: CalibrationSettings, share: Share) -> Observer:
    """The observer of a block of a stack, after its weights were looked at.

    Raises:
        NumericalError: a weight is not finite.
    """
    path, block = stack.path(index), stack.blocks[index]
    check_finite(block, path)
    how = (measuring.groups, share, measuring.expert_tokens, measuring.unreached)
    return Observer(stack.entry, stack.config, block, path, *how)


def merge(
    stack: Stack, index: int, shares: Sequence[BlockSums], measuring: CalibrationSettings, sequences: int
) -> BlockStatistics:
    """The statistics of block `index` of a stack from the sums of all shares in order: the bits of a calibration that is not shared.

    Raises:
        InputError: an expert that no token reaches.
    """
    with load_block(stack.blocks[index]):
        observer = observer_of(stack, index, measuring, Share(sequences))
        with observer.attach():
            return observer.finish(shares)


def stream_statistics(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    *,
    groups: int = 32,
    batch_size: int = 8,
    expert_tokens: float = EXPERT_TOKENS,
    unreached: str = "stop",
    parts: Sequence[str] = DECODER,
) -> Iterator[BlockStatistics]:
    """Statistics of every block in order, with dense inputs, in one pass over the tokens per part.

    Args:
        model, tokens: as in `Calibration`, with its errors.
        groups, batch_size, expert_tokens, unreached: as in `CalibrationSettings`.
        parts: of the model (`mgaa.models.architectures.PARTS`).
    """
    how = CalibrationSettings(groups, batch_size, expert_tokens, unreached)
    for stack in stacks_of(model, parts):
        calibration = Calibration(model, tokens, how, stack=stack)
        for index in remaining_blocks(calibration):
            yield calibration.measure(index)
            calibration.commit()


def stream_cosines(
    model: PreTrainedModel, tokens: Prompts | Int[Tensor, "s t"], *, batch_size: int = 8
) -> Iterator[BlockStatistics]:
    """The cosines of every decoder block in order, with dense inputs and without any moment; see `Calibration`."""
    calibration = Calibration(model, tokens, CalibrationSettings(batch_size=batch_size))
    for index in remaining_blocks(calibration):
        yield calibration.measure_cosines(index)
        calibration.commit()


def remaining_blocks(calibration: Calibration) -> Iterable[int]:
    """The blocks that the tokens have still to pass, with a progress bar."""
    left = range(calibration.passed, len(calibration))
    bar: Iterable[int] = tqdm(left, desc="calibrating blocks", disable=None)
    return bar


def check_tokens(tokens: Prompts | Int[Tensor, "*shape"], vocabulary: int) -> Prompts:
    """Tokens as prompts, after those were refused that cannot calibrate a model with `vocabulary` embeddings.

    Raises:
        InputError: not two-dimensional, empty, or ids outside `[0, vocabulary)`.
    """
    prompts = Prompts.of(tokens)
    check_vocabulary(prompts.ids(), vocabulary)
    return prompts
