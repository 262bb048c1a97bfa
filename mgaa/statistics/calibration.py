"""Calibration in block-outer order: for each decoder block, for each micro-batch (`mgaa.blocks.blockwise`).

The hidden states of all calibration tokens are carried from block to block, so only one block's statistics exist at a time, and the
consumer of the stream may store or decompose them before the next block starts. Several workers may share the sequences: each sums over its
own (`Calibration.measure_sums`), and `merge` returns the same bits as a single worker (`mgaa.statistics.shares`).

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
"""Treatments of experts that no calibration token reaches."""


@dataclass(frozen=True)
class CalibrationSettings:
    """Settings of calibration.

    Attributes:
        groups: groups of consecutive sequences whose means are kept.
        batch_size: sequences per forward pass.
        expert_tokens: tokens per channel, below which the covariance of an expert is shrunk.
        unreached: treatment of experts that no token reaches: `stop` (an error), or `dense` (their matrices stay unchanged).
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
    """Calibration tokens on their way through the blocks of a model, at the input of one block after the other.

    With dense inputs a block is measured and passed at once (`stream_statistics`). With compressed inputs the dense block is measured, then
    compressed in place, then the tokens pass through the compressed block (`mgaa.anchoring.sequential`). A calibration that is rebuilt and
    advanced through the same blocks has the same bits.

    Args:
        model: a transformers causal language model with an entry in `mgaa.models.entries`, split (`mgaa.models.fused.unfuse_`), dense, in
            eval mode. Blocks may be compressed later, in place.
        tokens: calibration sequences without padding; or prompts, some with images.
        measuring: the settings.
        stack: the blocks; by default those of the decoder. The inputs of a block of a vision tower are image patches: a prompt without an
            image has none.
        share: the sequences to measure here, where several workers share them.
        place, folder: where the hidden states are held (`mgaa.blocks.hidden_states`).

    Raises:
        InputError: there are no tokens, ids are outside the vocabulary, or the architecture has no entry.
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
        # refuses a model that was not split, some of whose linears would be missed
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
        self._line = Blockwise(model, batches, stack=self._stack, place=place, folder=folder, float32=True)

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._line)

    @property
    def passed(self) -> int:
        """Number of blocks that the tokens have passed; above zero at the start of a run that resumes from the folder."""
        return self._line.passed

    def statistics(self, index: int) -> BlockStatistics:
        """Measure block `index` on the tokens at its input, which do not advance.

        Raises:
            InputError: a block contradicts its entry, or no token reaches an expert.
            NumericalError: a weight or an activation is not finite (the message names layer and sequence).
        """
        return self._watch_block(index, keep=False).finish()

    def advance(self, index: int, *, watch: Any = None) -> None:
        """Send the tokens through block `index` in its current state; `watch` as in `mgaa.blocks.blockwise.Blockwise.advance`."""
        self._line.advance(index, watch=watch)
        self._line.commit()

    @property
    def sequences(self) -> list[range]:
        """Sequences of every micro-batch."""
        return list(self._ranges)

    def block_input(self, index: int, batch: int) -> tuple[Float[Tensor, "s t h"], Callable[[], Tensor]]:
        """Return a micro-batch at the input of block `index`, which does not advance, and a function that runs the block on it.

        The block must be resident (`mgaa.blocks.offload`).
        """
        before = self._line.hidden(batch)
        return before.reshape(len(self._ranges[batch]), -1, before.shape[-1]), lambda: self._line.call(
            index, batch, before
        )

    def measure(self, index: int) -> BlockStatistics:
        """Measure block `index` in the same pass that advances the tokens; `commit` ends it."""
        return self._watch_block(index).finish()

    def measure_sums(self, index: int) -> BlockSums:
        """Measure a block as `measure` does for one of several shares, as sums to be merged with those of the others (`merge`)."""
        return self._watch_block(index).total()

    def measure_cosines(self, index: int) -> BlockStatistics:
        """Measure only the cosines of the sublayers, without moments, for a fraction of the cost."""
        return self._watch_block(index, inputs=False).finish()

    def commit(self) -> None:
        """Complete the pass through the measured block.

        With hidden states in a folder, an interrupted run resumes here, so the results must be saved before.
        """
        self._line.commit()

    def close(self) -> None:
        """Discard the hidden states, including those in files."""
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
    """An observer that is given the first sequence of each micro-batch."""

    observer: Observer
    ranges: list[range]
    images: list[Tensor | None]

    def enter(self, batch: int, hidden: Tensor) -> None:
        """Start a micro-batch."""
        sequences = self.ranges[batch]
        self.observer.enter(sequences.start, hidden.reshape(len(sequences), -1, hidden.shape[-1]), self.images[batch])

    def leave(self, hidden: Tensor) -> None:
        """End a micro-batch."""
        self.observer.leave(hidden)


def observer_of(stack: Stack, index: int, measuring: CalibrationSettings, share: Share) -> Observer:
    """Return the observer of a block of a stack, after a check of its weights.

    Raises:
        NumericalError: a weight is not finite.
    """
    path, block = stack.path(index), stack.blocks[index]
    check_finite(block, path)
    settings = (measuring.groups, share, measuring.expert_tokens, measuring.unreached)
    return Observer(stack.entry, stack.config, block, path, *settings)


def merge(
    stack: Stack, index: int, shares: Sequence[BlockSums], measuring: CalibrationSettings, sequences: int
) -> BlockStatistics:
    """Merge the sums of all shares of block `index` of a stack, in order: the bits are those of an unshared calibration.

    Raises:
        InputError: no token reaches an expert.
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
    """Yield the statistics of every block in order, with dense inputs, in one pass over the tokens per part.

    Args:
        model, tokens: as in `Calibration`, with its errors.
        groups, batch_size, expert_tokens, unreached: as in `CalibrationSettings`.
        parts: of the model (`mgaa.models.architectures.PARTS`).
    """
    settings = CalibrationSettings(groups, batch_size, expert_tokens, unreached)
    for stack in stacks_of(model, parts):
        calibration = Calibration(model, tokens, settings, stack=stack)
        for index in remaining_blocks(calibration):
            yield calibration.measure(index)
            calibration.commit()


def stream_cosines(
    model: PreTrainedModel, tokens: Prompts | Int[Tensor, "s t"], *, batch_size: int = 8
) -> Iterator[BlockStatistics]:
    """Yield the cosines of every decoder block in order, with dense inputs and without any moment; see `Calibration`."""
    calibration = Calibration(model, tokens, CalibrationSettings(batch_size=batch_size))
    for index in remaining_blocks(calibration):
        yield calibration.measure_cosines(index)
        calibration.commit()


def remaining_blocks(calibration: Calibration) -> Iterable[int]:
    """Return the blocks that the tokens have still to pass, with a progress bar."""
    left = range(calibration.passed, len(calibration))
    bar: Iterable[int] = tqdm(left, desc="calibrating blocks", disable=None)
    return bar


def check_tokens(tokens: Prompts | Int[Tensor, "*shape"], vocabulary: int) -> Prompts:
    """Return tokens as prompts, or refuse those that cannot calibrate a model with `vocabulary` embeddings.

    Raises:
        InputError: they are not two-dimensional, empty, or have ids outside `[0, vocabulary)`.
    """
    prompts = Prompts.of(tokens)
    check_vocabulary(prompts.ids(), vocabulary)
    return prompts
