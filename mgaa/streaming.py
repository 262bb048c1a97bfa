"""Calibration in block-outer order: for each decoder block, for each micro-batch.

The hidden states of all calibration tokens are carried from block to block, so only one block's statistics exist at a time, and the
consumer of the stream may store or decompose them before the next block starts. The arguments that a block needs beside its hidden
states (masks, rotary embeddings, positions) come from the model's own forward, run with the blocks' `forward` replaced by
recorders: this works for every architecture and copies no model code.

Legend: s sequences, t tokens of a sequence, h hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mgaa.architectures import Architecture, Sublayer, architecture_of, decoder_blocks
from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.lowrank import non_finite
from mgaa.statistics import Accumulator, BlockStatistics, CosineAccumulator
from mgaa.tokens import check_vocabulary


def stream_statistics(
    model: PreTrainedModel, tokens: Int[Tensor, "s t"], *, groups: int = 32, batch_size: int = 8
) -> Iterator[BlockStatistics]:
    """Statistics of every decoder block in order, with dense inputs, in one pass over the tokens.

    Args:
        model: a transformers causal language model with an entry in `mgaa.architectures`, in eval mode.
        tokens: calibration sequences without padding.
        groups: groups of consecutive sequences whose means are kept.
        batch_size: sequences per forward pass.

    Raises:
        UsageError: fewer than one group, or than one sequence per forward pass.
        InputError: no tokens, ids outside the vocabulary, or an architecture without an entry.
        NumericalError: a weight or an activation is not finite (the message names layer and sequence).
    """
    if groups < 1 or batch_size < 1:
        raise UsageError(f"groups is {groups} and batch_size is {batch_size}, expected whole numbers from 1 on")
    check_tokens(tokens, model.get_input_embeddings().num_embeddings)
    entry = architecture_of(model.config.model_type)
    blocks = decoder_blocks(model)
    batches = _record(model, blocks, tokens, batch_size)
    for index, block in enumerate(tqdm(blocks, desc="calibrating blocks", disable=None)):
        _check_weights(block, f"{entry.blocks}.{index}")
        observer = _Observer(entry, block, f"{entry.blocks}.{index}", groups, len(tokens))
        with torch.no_grad(), observer.attached():
            for batch in batches:
                observer.first = batch.first
                batch.hidden = _first(block(batch.hidden, **batch.arguments[index]))
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


@dataclass
class _Batch:
    first: int
    hidden: Float[Tensor, "s t h"]
    arguments: list[dict[str, Any]]


def _first(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _record(model: PreTrainedModel, blocks: nn.ModuleList, tokens: Int[Tensor, "s t"], batch_size: int) -> list[_Batch]:
    """Hidden states before the first block, and each block's other arguments, for every micro-batch."""
    batches = []
    device = model.get_input_embeddings().weight.device
    for first in range(0, len(tokens), batch_size):
        calls: list[tuple[Tensor, dict[str, Any]]] = []
        with torch.no_grad(), _replaced(blocks, lambda hidden, calls=calls, **kwargs: _remember(calls, hidden, kwargs)):
            model.base_model(input_ids=tokens[first : first + batch_size].to(device), use_cache=False)
        batches.append(_Batch(first, calls[0][0], [arguments for _, arguments in calls]))
    return batches


def _remember(calls: list[tuple[Tensor, dict[str, Any]]], hidden: Tensor, arguments: dict[str, Any]) -> Tensor:
    calls.append((hidden, arguments))
    return hidden


@contextmanager
def _replaced(blocks: nn.ModuleList, forward: Callable[..., Tensor]) -> Iterator[None]:
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


@dataclass
class _Observer:
    """Watches one block: inputs of its linears, and the residual stream around its sublayers."""

    entry: Architecture
    block: nn.Module
    path: str
    groups: int
    sequences: int
    first: int = 0
    _accumulators: dict[str, Accumulator] = field(default_factory=dict)
    _shared: dict[str, str] = field(default_factory=dict)
    _cosines: dict[str, tuple[CosineAccumulator, CosineAccumulator]] = field(default_factory=dict)
    _entered: dict[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks live inside this context only."""
        with ExitStack() as stack:
            for sublayer in self.entry.sublayers:
                self._watch_stream(stack, sublayer)
                for linears in sublayer.inputs:
                    self._watch_input(stack, linears)
            yield

    def _watch_input(self, stack: ExitStack, linears: tuple[str, ...]) -> None:
        modules = {name: self.block.get_submodule(name) for name in linears}
        weights: dict[str, Tensor] = {name: module.weight.detach() for name, module in modules.items()}  # type: ignore[union-attr, operator]
        narrow = sum(weight.shape[0] ** 2 for weight in weights.values()) < weights[linears[0]].shape[1] ** 2
        keys = linears if narrow else linears[:1]
        for key in keys:
            own = weights[key] if narrow else None
            self._accumulators[key] = Accumulator(f"{self.path}.{key}", self.groups, self.sequences, own)
        self._shared |= {name: name if narrow else keys[0] for name in linears}

        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            for offset, sequence in enumerate(arguments[0]):
                for key in keys:
                    self._accumulators[key].update(self.first + offset, sequence)

        stack.enter_context(_hook(modules[linears[0]].register_forward_pre_hook(hook)))

    def _watch_stream(self, stack: ExitStack, sublayer: Sublayer) -> None:
        stream, branch = (CosineAccumulator(f"{self.path}.{sublayer.name}") for _ in range(2))
        self._cosines[sublayer.name] = (stream, branch)

        def enter(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self._entered[sublayer.name] = arguments[0]

        def leave(after: Tensor) -> None:
            before = self._entered.pop(sublayer.name)
            for offset, (a, b) in enumerate(zip(before, after, strict=True)):
                stream.update(self.first + offset, a, b)
                branch.update(self.first + offset, a, b - a)

        entrance = self.block.get_submodule(sublayer.enters)
        stack.enter_context(_hook(entrance.register_forward_pre_hook(enter)))
        if sublayer.leaves:
            exit_ = self.block.get_submodule(sublayer.leaves)
            # `prepend`: a sublayer must leave before the next one enters through the same module
            stack.enter_context(
                _hook(exit_.register_forward_pre_hook(lambda _, arguments: leave(arguments[0]), prepend=True))
            )
        else:
            stack.enter_context(_hook(self.block.register_forward_hook(lambda _, __, output: leave(_first(output)))))

    def finish(self) -> BlockStatistics:
        return BlockStatistics(
            cosines={name: stream.finish() for name, (stream, _) in self._cosines.items()},
            branch_cosines={name: branch.finish() for name, (_, branch) in self._cosines.items()},
            inputs={key: accumulator.finish() for key, accumulator in self._accumulators.items()},
            shared=self._shared,
        )


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
