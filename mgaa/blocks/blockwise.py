"""Micro-batches on their way through a model, one decoder block after the other: for each block, for each micro-batch.

So a block is needed once for all tokens, which is what lets its tensors stay in their files until then (`mgaa.blocks.offload`), and only
one block's statistics exist at a time. What a block needs beside its hidden states (masks, rotary embeddings, positions) comes from the
model's own forward, run with the blocks' `forward` replaced by recorders; what follows the last block (norm, head) from another such
forward, in which the last block gives the hidden states that have arrived. This works for every architecture and copies no model code;
every operation is the one of the plain forward, on the same micro-batch, so the bits are the same. What a model adds to the stream between
two blocks (features of images, in Qwen3-VL) is recorded as well, and added again. Gradients go the same way back: what follows
the last block is run with autograd on, then block after block again, on the hidden states that were kept in front of it.

Legend: s sequences of a micro-batch, t tokens of a sequence, h hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.blocks.additions import Addition
from mgaa.blocks.hidden_states import HiddenStates, Place
from mgaa.blocks.offload import resident
from mgaa.errors import InputError
from mgaa.models.architectures import DECODER, Stack, stacks_of
from mgaa.models.model_inputs import IDS, Inputs

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with beside its hidden states: positional, and by name."""


class Blockwise:
    """Micro-batches in front of one block after the other.

    Args:
        model: a transformers causal language model with an entry in `mgaa.models.entries`, in eval mode.
        batches: the inputs of each micro-batch: token ids, and what the model takes beside them (`mgaa.inputs.prompts`).
        stack: the blocks; by default those of the decoder.
        place, folder: where the hidden states wait (`mgaa.blocks.hidden_states`). Those of an interrupted run over the same batches are
            taken up there.
        every: whether they are kept in front of every block, for a way back.
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
    ) -> None:
        self._stack = stacks_of(model)[0] if stack is None else stack
        self._model, self._batches, self._blocks = model, batches, self._stack.blocks
        self._tuples = self._stack.entry.returns == "tuple"
        self._device: torch.device = model.get_input_embeddings().weight.device
        self._hidden = HiddenStates(len(batches), self._device, place=place, folder=folder, every=every)
        self._between: list[dict[int, Addition]] = []
        self._arguments = self._record()

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    @property
    def passed(self) -> int:
        """How many blocks the tokens have passed; more than none at the start where an interrupted run is taken up."""
        return self._hidden.passed - 1

    @torch.no_grad()
    def through(self, index: int, *, keep: bool = True, watch: Any = None) -> None:
        """Send all micro-batches through block `index`.

        Args:
            keep: whether they stand behind it afterwards; `settle` then says that nothing of the pass is to be repeated.
            watch: `enter(batch, hidden)` and `leave(hidden)` are called around the block.
        """
        block = self._blocks[index]
        with resident(block, ahead=1):
            for batch in range(len(self._batches)):
                hidden = self._hidden.get(batch)
                positional, named = self._arguments[batch][index]
                if watch is not None:
                    watch.enter(batch, hidden)
                hidden = first_of(block(hidden, *positional, **named))
                if watch is not None:
                    watch.leave(hidden)
                if keep:
                    self._hidden.put(batch, self._behind_block(index, batch, hidden))

    def _behind_block(self, index: int, batch: int, hidden: Tensor) -> Tensor:
        """What the model hands on of the output of block `index`."""
        added = self._between[batch].get(index)
        return hidden if added is None else added.to(hidden)

    def hidden(self, batch: int) -> Tensor:
        """A micro-batch before the block at hand."""
        return self._hidden.get(batch)

    def call(self, index: int, batch: int, hidden: Tensor) -> Tensor:
        """What block `index` makes of a micro-batch, which stays where it is, without what the model adds behind it; the block must be
        resident (`mgaa.blocks.offload`).

        Autograd is on where the caller has it on.
        """
        positional, named = self._arguments[batch][index]
        return first_of(self._blocks[index](hidden, *positional, **named))

    def settle(self) -> None:
        """What was made of the last pass is safe: an interrupted run goes on behind it."""
        self._hidden.settle()

    def close(self) -> None:
        """Forget the hidden states, in files as well."""
        self._hidden.close()

    @torch.no_grad()
    def output(self, batch: int, **options: Any) -> Any:
        """The output of the whole model for a micro-batch, once all blocks are passed.

        Args:
            options: further arguments of the model's forward.
        """
        return self._behind(self._hidden.get(batch), batch, options)

    @torch.enable_grad()
    def slope(self, batch: int, loss: Callable[[Any], Tensor]) -> Tensor:
        """The gradient of a loss of the model's output with respect to the hidden states behind the last block."""
        arrived = self._hidden.get(batch).detach().requires_grad_()
        (found,) = torch.autograd.grad(loss(self._behind(arrived, batch, {})), arrived)
        return found

    @torch.enable_grad()
    def back(self, index: int, gradients: HiddenStates, watch: Any) -> None:
        """Send the gradients of all micro-batches back through block `index`, whose forward is computed again; `every` state was kept.

        Args:
            gradients: with respect to what the block gives; behind it, of what it was given.
            watch: `enter(batch, hidden)` and `leave(hidden)` are called around each forward, on what autograd does not follow.
        """
        block = self._blocks[index]
        self._hidden.forget(index + 2)  # what is behind the block
        with resident(block, ahead=-1):
            for batch in range(len(self._batches)):
                hidden = self._hidden.get(batch, index + 1).detach()
                positional, named = self._arguments[batch][index]
                watch.enter(batch, hidden)
                leaf = hidden.detach().requires_grad_()
                output = first_of(block(leaf, *positional, **named))
                watch.leave(output.detach())
                (found,) = torch.autograd.grad(output, leaf, gradients.get(batch))
                gradients.put(batch, found)

    def _behind(self, arrived: Tensor, batch: int, options: dict[str, Any]) -> Any:
        """What the model makes of hidden states behind the last block."""
        last = len(self._blocks) - 1

        def forward(index: int, hidden: Tensor, *_: Any, **__: Any) -> Any:
            return self._returned(arrived if index == last else hidden)

        # what is made of images has gone into the hidden states long ago, unless it is added between blocks: so maybe behind the last
        inputs = self._batches[batch] if self._between[batch] else {IDS: self._batches[batch][IDS]}
        with replaced(self._blocks, forward):
            return self._model(**self._on_device(inputs), use_cache=False, **options)

    @torch.no_grad()
    def _record(self) -> list[list[Arguments]]:
        """Each block's other arguments for every micro-batch; the hidden states before the first block are put in their place."""
        recorded, pool = [], list[Tensor]()
        fresh = not self._hidden.resumed
        for batch, inputs in enumerate(self._batches):
            received, arguments = self._received(inputs, lambda hidden: hidden)
            self._between.append(self._additions(inputs, received))
            known: dict[int, Tensor] = {}
            recorded.append([_pooled(each, pool, known) for each in arguments])
            if fresh:
                self._hidden.put(batch, received[0])
        if fresh:
            self._hidden.settle()
        else:
            self._hidden.resume()
        return recorded

    def _received(self, inputs: Inputs, forward: Callable[[Tensor], Tensor]) -> tuple[list[Tensor], list[Arguments]]:
        """The hidden states that every block is given, and its other arguments, where `forward` stands in for all blocks."""
        received: list[Tensor] = []
        arguments: list[Arguments] = []

        def remember(index: int, hidden: Tensor, *positional: Any, **named: Any) -> Any:
            received.append(hidden)
            arguments.append((positional, named))
            if index + 1 == len(self._blocks) and self._stack.part not in DECODER:
                raise _Recorded  # what follows would be given what no block has made
            return self._returned(forward(hidden))

        with replaced(self._blocks, remember), suppress(_Recorded):
            self._enter(inputs)
        return received, arguments

    def _additions(self, inputs: Inputs, received: list[Tensor]) -> dict[int, Addition]:
        """What the model adds behind each block, where the blocks do not receive what the ones before them gave.

        Raises:
            InputError: what it does between blocks is something else than an addition.
        """
        changed = [index for index, (one, two) in enumerate(pairwise(received)) if one is not two]
        if not changed:
            return {}
        alone, _ = self._received(inputs, torch.zeros_like)
        additions = {index: Addition.of(alone[index + 1]) for index in changed}
        for index, added in additions.items():
            if not torch.equal(added.to(received[index]), received[index + 1]):
                raise InputError(
                    f"between {self._stack.path(index)} and the next block the model does more than to add to the hidden states, expected "
                    "that block reads what block wrote: this model cannot go block by block; take another"
                )
        return {index: added for index, added in additions.items() if len(added.rows)}

    def _enter(self, inputs: Inputs) -> None:
        """Run what comes before the first block."""
        given = self._on_device(inputs)
        try:
            self._model.base_model(**given, use_cache=False)
        except (ValueError, RuntimeError, IndexError) as error:
            if len(given) == 1 or isinstance(error, torch.OutOfMemoryError):
                raise
            shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
            raise InputError(
                f"the model does not take a prompt with {shapes} ({str(error).strip().partition(chr(10))[0]}): expected as many image "
                "tokens as its vision tower gives features; the processor's patch size, image size or "
                "vision_feature_select_strategy belong to another model"
            ) from error

    def _on_device(self, inputs: Inputs) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    def _returned(self, hidden: Tensor) -> Any:
        return (hidden, None) if self._tuples else hidden


class _Recorded(Exception):  # noqa: N818 (no error)
    """All blocks were called."""


def first_of(output: Any) -> Tensor:
    """The hidden states among what a module returns."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


@contextmanager
def replaced(blocks: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """Let `forward(index, hidden, ...)` stand in for the forward of every block; the modules keep their other attributes."""
    own = [vars(block).get("forward") for block in blocks]  # an instance has one where others have wrapped it
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
    """A function with its first argument (`functools.partial`, whose signature transformers does not take for that of a forward)."""

    def __init__(self, function: Callable[..., Any], index: int) -> None:
        self._function, self._index = function, index

    def __call__(self, *positional: Any, **named: Any) -> Any:
        return self._function(self._index, *positional, **named)


def _pooled(value: Any, pool: list[Tensor], known: dict[int, Tensor]) -> Any:
    """The same value with every tensor that equals one of the pool replaced by that one: masks and rotary embeddings of all micro-batches
    are the same unless lengths differ, and would take the memory of many blocks."""
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = next((each for each in pool if _equal(each, value)), value)
            if known[id(value)] is value:
                pool.append(value)
        return known[id(value)]
    if isinstance(value, tuple | list):
        return type(value)(_pooled(each, pool, known) for each in value)
    if isinstance(value, Mapping) and type(value) is dict:
        return {name: _pooled(each, pool, known) for name, each in value.items()}
    return value


def _equal(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two)
