"""Micro-batches on their way through a model, block by block: for each decoder block, for each micro-batch.

So a block is needed once for all tokens, which is what lets its tensors stay in their files until then (`mgaa.blocks.offload`), and only
one block's statistics exist at a time. The other arguments of a block (masks, rotary embeddings, positions) come from the model's own
forward, run with the blocks' `forward` replaced by recorders; the rest after the last block (norm, head) runs in another such forward, in
which the last block returns the final hidden states. This works for every architecture and copies no model code; every operation is that of
the plain forward, on the same micro-batch, so the bits are equal
(with `float32`, equal but for the order of sums in a linear). Additions of the model between two blocks (image features, in Qwen3-VL)
are recorded as well, and repeated. Gradients flow backwards in the same way: the part after the last block runs with autograd, then block
by block again, on the hidden states kept at the input of each.

Legend: s sequences of a micro-batch, t tokens of a sequence, h hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.blocks.additions import Addition
from mgaa.blocks.hidden_states import HiddenStates, Place
from mgaa.blocks.offload import load_block
from mgaa.blocks.products import float32_products
from mgaa.errors import InputError
from mgaa.models.architectures import DECODER, Stack, stacks_of
from mgaa.models.model_inputs import IDS, Inputs

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a block besides its hidden states: positional, and by name."""


class Blockwise:
    """Micro-batches at the input of one block after the other.

    Args:
        model: a transformers causal language model with an entry in `mgaa.models.entries`, in eval mode.
        batches: inputs of each micro-batch: token ids, and the model's other inputs (`mgaa.inputs.prompts`).
        stack: the blocks; by default those of the decoder.
        place, folder: where the hidden states are held (`mgaa.blocks.hidden_states`). The run resumes from states that an interrupted run
            over the same batches left there.
        every: whether the states at the input of every block are kept, for a backward pass.
        float32: whether 16-bit linears may be computed in float32 and rounded (`mgaa.blocks.products`), which is faster on some processors
            and equal but for the order of sums.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        batches: Sequence[Inputs],
        *,
        stack: Stack | None = None,
        place: Place = "device",
        folder: Path | None = None,
        every: bool = False,
        float32: bool = False,
    ) -> None:
        self._products = float32_products if float32 else nullcontext
        self._stack = stacks_of(model)[0] if stack is None else stack
        self._model, self._batches, self._blocks = model, batches, self._stack.blocks
        self._tuples = self._stack.entry.returns == "tuple"
        self._device: torch.device = model.get_input_embeddings().weight.device
        self._hidden = HiddenStates(len(batches), self._device, place=place, folder=folder, every=every)
        self._between: list[dict[int, Addition]] = []
        self._arguments = self._record()

    def __len__(self) -> int:
        """Return the number of blocks."""
        return len(self._blocks)

    @property
    def passed(self) -> int:
        """Number of blocks that the tokens have passed; above zero at the start of a resumed run."""
        return self._hidden.passed - 1

    @torch.no_grad()
    def advance(self, index: int, *, keep: bool = True, watch: Any = None) -> None:
        """Send all micro-batches through block `index`.

        Args:
            keep: whether their new states replace the old; `commit` then confirms the pass, so that it is not repeated.
            watch: its `enter(batch, hidden)` and `leave(hidden)` are called around the block.
        """
        block = self._blocks[index]
        with load_block(block, ahead=1), self._products(block):
            for batch in range(len(self._batches)):
                hidden = self._hidden.get(batch)
                positional, named = self._arguments[batch][index]
                if watch is not None:
                    watch.enter(batch, hidden)
                hidden = hidden_states_of(block(hidden, *positional, **named))
                if watch is not None:
                    watch.leave(hidden)
                if keep:
                    self._hidden.put(batch, self._after_block(index, batch, hidden))

    def _after_block(self, index: int, batch: int, hidden: Tensor) -> Tensor:
        """Return what the model passes on from the output of block `index`."""
        added = self._between[batch].get(index)
        return hidden if added is None else added.add_to(hidden)

    def hidden(self, batch: int) -> Tensor:
        """Return the hidden states of a micro-batch at the input of the current block."""
        return self._hidden.get(batch)

    def call(self, index: int, batch: int, hidden: Tensor) -> Tensor:
        """Run a micro-batch through block `index` without changing the kept states, and without the model's additions after the block; the
        block must be resident (`mgaa.blocks.offload`).

        Autograd follows the setting of the caller.
        """
        positional, named = self._arguments[batch][index]
        with self._products(self._blocks[index]):
            return hidden_states_of(self._blocks[index](hidden, *positional, **named))

    def commit(self) -> None:
        """Confirm that the results of the last pass are saved: an interrupted run resumes after it."""
        self._hidden.commit()

    def close(self) -> None:
        """Discard the hidden states, including those in files."""
        self._hidden.close()

    @torch.no_grad()
    def output(self, batch: int, **options: Any) -> Any:
        """Return the output of the whole model for a micro-batch, after all blocks are passed.

        Args:
            options: further arguments of the model's forward.
        """
        return self._after_blocks(self._hidden.get(batch), batch, options)

    @torch.enable_grad()
    def loss_gradient(self, batch: int, loss: Callable[[Any], Tensor]) -> Tensor:
        """Return the gradient of a loss of the model's output with respect to the hidden states after the last block."""
        arrived = self._hidden.get(batch).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(self._after_blocks(arrived, batch, {})), arrived)
        return gradient

    @torch.enable_grad()
    def backward(self, index: int, gradients: HiddenStates, watch: Any) -> None:
        """Send the gradients of all micro-batches back through block `index`, whose forward is recomputed; requires `every`.

        Args:
            gradients: with respect to the output of the block; replaced by those with respect to its input.
            watch: its `enter(batch, hidden)` and `leave(hidden)` are called around each forward, with detached tensors.
        """
        block = self._blocks[index]
        self._hidden.forget(index + 2)  # the states after the block
        with load_block(block, ahead=-1), self._products(block):
            for batch in range(len(self._batches)):
                hidden = self._hidden.get(batch, index + 1).detach()
                positional, named = self._arguments[batch][index]
                watch.enter(batch, hidden)
                leaf = hidden.detach().requires_grad_()
                output = hidden_states_of(block(leaf, *positional, **named))
                watch.leave(output.detach())
                (gradient,) = torch.autograd.grad(output, leaf, gradients.get(batch))
                gradients.put(batch, gradient)

    def _after_blocks(self, arrived: Tensor, batch: int, options: dict[str, Any]) -> Any:
        """Run the part of the model after the last block on hidden states."""
        last = len(self._blocks) - 1

        def forward(index: int, hidden: Tensor, *_: Any, **__: Any) -> Any:
            return self._as_block_output(arrived if index == last else hidden)

        # image features are part of the hidden states already, unless the model adds some between blocks: then possibly after the last
        inputs = self._batches[batch] if self._between[batch] else {IDS: self._batches[batch][IDS]}
        with replace_forward(self._blocks, forward):
            return self._model(**self._on_device(inputs), use_cache=False, **options)

    @torch.no_grad()
    def _record(self) -> list[list[Arguments]]:
        """Record each block's other arguments for every micro-batch, and keep the hidden states before the first block."""
        recorded, pool = [], list[Tensor]()
        fresh = not self._hidden.resumed
        for batch, inputs in enumerate(self._batches):
            received, arguments = self._capture_inputs(inputs, lambda hidden: hidden)
            self._between.append(self._additions(inputs, received))
            known: dict[int, Tensor] = {}
            recorded.append([_deduplicate(value, pool, known) for value in arguments])
            if fresh:
                self._hidden.put(batch, received[0])
        if fresh:
            self._hidden.commit()
        else:
            self._hidden.resume()
        return recorded

    def _capture_inputs(
        self, inputs: Inputs, forward: Callable[[Tensor], Tensor]
    ) -> tuple[list[Tensor], list[Arguments]]:
        """Capture the hidden states that every block receives, and its other arguments, with `forward` in place of all blocks."""
        received: list[Tensor] = []
        arguments: list[Arguments] = []

        def remember(index: int, hidden: Tensor, *positional: Any, **named: Any) -> Any:
            received.append(hidden)
            arguments.append((positional, named))
            if index + 1 == len(self._blocks) and self._stack.part not in DECODER:
                raise _StopRecording  # the rest would receive hidden states that no block computed
            return self._as_block_output(forward(hidden))

        with replace_forward(self._blocks, remember), suppress(_StopRecording):
            self._run_until_blocks(inputs)
        return received, arguments

    def _additions(self, inputs: Inputs, received: list[Tensor]) -> dict[int, Addition]:
        """Return the model's additions after each block, where a block does not receive the output of the one before it.

        Raises:
            InputError: the model does anything but add between blocks.
        """
        changed = [index for index, (one, two) in enumerate(pairwise(received)) if one is not two]
        if not changed:
            return {}
        alone, _ = self._capture_inputs(inputs, torch.zeros_like)
        additions = {index: Addition.of(alone[index + 1]) for index in changed}
        for index, added in additions.items():
            if not torch.equal(added.add_to(received[index]), received[index + 1]):
                raise InputError(
                    f"between {self._stack.path(index)} and the next block the model does more than add to the hidden states, expected "
                    "every block to read the output of the one before: this model cannot be processed block by block; take another"
                )
        return {index: added for index, added in additions.items() if len(added.rows)}

    def _run_until_blocks(self, inputs: Inputs) -> None:
        """Run the part of the model before the first block."""
        arguments = self._on_device(inputs)
        try:
            self._model.base_model(**arguments, use_cache=False)
        except (ValueError, RuntimeError, IndexError) as error:
            if len(arguments) == 1 or isinstance(error, torch.OutOfMemoryError):
                raise
            shapes = {name: tuple(tensor.shape) for name, tensor in arguments.items()}
            raise InputError(
                f"the model does not take a prompt with {shapes} ({str(error).strip().partition(chr(10))[0]}): expected as many image "
                "tokens as its vision tower gives features; the processor's patch size, image size or "
                "vision_feature_select_strategy belong to another model"
            ) from error

    def _on_device(self, inputs: Inputs) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    def _as_block_output(self, hidden: Tensor) -> Any:
        return (hidden, None) if self._tuples else hidden


class _StopRecording(Exception):  # noqa: N818 (no error)
    """All blocks were called."""


def hidden_states_of(output: Any) -> Tensor:
    """Return the hidden states from the output of a module."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def replace_forward(blocks: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Let `forward(index, hidden, ...)` replace the forward of every block; the modules keep their other attributes."""
    own = [vars(block).get("forward") for block in blocks]  # an instance has its own where another library wrapped it
    try:
        for index, block in enumerate(blocks):
            block.forward = _Bound(forward, index)
        yield
    finally:
        for block, wrapped in zip(blocks, own, strict=True):
            del block.forward
            if wrapped is not None:
                block.forward = wrapped


class _Bound:
    """A function with its first argument bound (not `functools.partial`, whose signature transformers does not accept as a forward)."""

    def __init__(self, function: Callable[..., Any], index: int) -> None:
        self._function, self._index = function, index

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._function(self._index, *positional, **named)


def _deduplicate(value: Any, pool: list[Tensor], known: dict[int, Tensor]) -> Any:
    """Replace every tensor in a value that equals one of the pool by that one.

    Masks and rotary embeddings of all micro-batches are equal unless lengths differ, and would take the memory of many blocks.
    """
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = next((item for item in pool if _equal(item, value)), value)
            if known[id(value)] is value:
                pool.append(value)
        return known[id(value)]
    if isinstance(value, tuple | list):
        return type(value)(_deduplicate(item, pool, known) for item in value)
    if isinstance(value, Mapping) and type(value) is dict:
        return {name: _deduplicate(item, pool, known) for name, item in value.items()}
    return value


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two)
