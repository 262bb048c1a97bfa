"""Observer of one decoder block: the inputs of its linears, and the residual stream around its sublayers.

The stream is rebuilt from the input of the block and the addition of each sublayer, so that it is correct also where norms follow the
branches, where branches are scaled, and where attention and FFN are computed in parallel. At every step the sum of the branches is checked
against the output of the block: a model whose blocks differ from its entry is refused instead of measured wrongly.

Legend: s sequences of a micro-batch, t tokens of a sequence, h hidden size, n channels of an input.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mgaa.blocks.blockwise import hidden_states_of
from mgaa.blocks.products import product_of
from mgaa.errors import InputError
from mgaa.models.architecture_schema import Architecture, Group, Sublayer
from mgaa.models.expert_routing import RoutedRows
from mgaa.statistics.accumulate import Accumulator, CosineAccumulator, Moments
from mgaa.statistics.block_sums import BlockSums
from mgaa.statistics.shares import Share
from mgaa.statistics.statistics import KINDS, BlockStatistics, InputStatistics

RESIDUE = 0.02
"""Largest relative difference between the output of a block and the sum of its branches; bfloat16 rounds by a tenth of it."""


@dataclass
class Observer:
    """Collects the statistics of one block.

    Attributes:
        entry, config: of the model.
        block, path: the block, and its name for messages.
        groups, expert_tokens, unreached: as in `mgaa.statistics.calibration.CalibrationSettings`.
        share: the sequences to measure.
    """

    entry: Architecture
    config: PreTrainedConfig
    block: nn.Module
    path: str
    groups: int
    share: Share
    expert_tokens: float
    unreached: str = "stop"
    _first: int = 0
    _stream: Tensor = field(default_factory=lambda: torch.empty(0))
    _entered: Tensor = field(default_factory=lambda: torch.empty(0))
    _images: Tensor | None = None
    _read: list[tuple[Tensor, str]] = field(default_factory=list)
    _accumulators: dict[str, Accumulator] = field(default_factory=dict)
    _shared: dict[str, str] = field(default_factory=dict)
    _of_experts: set[str] = field(default_factory=set)
    _cosines: dict[str, tuple[CosineAccumulator, CosineAccumulator]] = field(default_factory=dict)
    _apart: dict[str, CosineAccumulator] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = RoutedRows(self.entry, self.block)

    @contextmanager
    def attach(self, *, inputs: bool = True) -> Iterator[None]:
        """Within this context, hooks are attached; without `inputs` only the residual stream is observed."""
        with ExitStack() as stack:
            stack.enter_context(self._rows.watch())
            for sublayer in self.entry.sublayers:
                if self.entry.residual:
                    self._watch_branch(stack, sublayer)
                for group in sublayer.groups(self.block) if inputs else ():
                    self._watch_input(stack, group)
            yield

    def enter(self, first: int, hidden: Float[Tensor, "s t h"], images: Bool[Tensor, "s t"] | None = None) -> None:
        """Start a micro-batch; `first` is the index of its first sequence, `images` marks the tokens that stand for images."""
        self._first, self._entered, self._stream = first, hidden, hidden
        self._rows.enter(len(hidden))
        self._images = None if images is None else images.to(hidden.device)
        self._read = []

    def leave(self, hidden: Float[Tensor, "*rows h"]) -> None:
        """End a micro-batch.

        Raises:
            InputError: the block adds anything but the branches of the entry to the stream.
        """
        if not self.entry.residual:
            self._read = []
            return
        hidden = hidden.reshape(self._stream.shape)
        whole, rest = (float(torch.linalg.vector_norm(x.float())) for x in (hidden, hidden - self._stream))
        difference = rest / whole if whole else rest
        self._read = []
        if not difference <= RESIDUE:
            raise InputError(
                f"the output of {self.path} differs by {difference:.2g} of its norm from the sum of its sublayers, expected at most "
                f"{RESIDUE}: this {self.config.model_type} computes its blocks differently from its entry in "
                "mgaa/models/entries.py (for example a norm after the sum); take another variant, or add an entry"
            )

    def total(self) -> BlockSums:
        """Return the sums over the share, for a `finish` with those of all shares."""
        return BlockSums(
            {key: accumulator.total() for key, accumulator in self._accumulators.items()},
            {name: (stream.total(), branch.total()) for name, (stream, branch) in self._cosines.items()},
            self._shared,
            {name: each.total() for name, each in self._apart.items()},
        )

    def finish(self, shares: Sequence[BlockSums] | None = None) -> BlockStatistics:
        """Return the statistics of this observer, or of the observers of all shares, in order.

        Raises:
            InputError: no token reached an expert, unless its linears are to stay dense.
        """
        shares = (self.total(),) if shares is None else shares
        inputs = {key: self._input(key, [share.inputs[key] for share in shares]) for key in shares[0].inputs}
        shared = {linear: key for linear, key in shares[0].shared.items() if inputs[key] is not None}
        return BlockStatistics(
            cosines={n: each.finish([s.cosines[n][0] for s in shares]) for n, (each, _) in self._cosines.items()},
            branch_cosines={
                n: each.finish([s.cosines[n][1] for s in shares]) for n, (_, each) in self._cosines.items()
            },
            inputs={key: statistics for key, statistics in inputs.items() if statistics is not None},
            shared=shared,
            unreached=tuple(linear for linear in shares[0].shared if linear not in shared),
            apart={
                name: cosine
                for name, each in self._apart.items()
                if (cosine := each.finish_or_none([share.apart.get(name) for share in shares])) is not None
            },
        )

    def _input(self, key: str, shares: Sequence[Moments | None]) -> InputStatistics | None:
        """Return the statistics of an input; `None` where no token reached it and its linears are to stay dense."""
        accumulator = self._accumulators[key]
        if self.unreached == "dense" and key in self._of_experts:
            return accumulator.finish_or_none(shares)
        return accumulator.finish(shares)

    def _watch_input(self, stack: ExitStack, group: Group) -> None:
        linears = group.linears
        modules = {name: self.block.get_submodule(name) for name in linears}
        weights: dict[str, Tensor] = {name: module.weight.detach() for name, module in modules.items()}  # type: ignore[union-attr, operator]
        narrow = is_narrow([tuple(weight.shape) for weight in weights.values()])
        keys = linears if narrow else linears[:1]
        self._of_experts |= set() if group.expert is None else set(keys)
        minimum = 0.0 if group.expert is None else self.expert_tokens
        for key in keys:
            own = weights[key] if narrow else None
            self._accumulators[key] = Accumulator(f"{self.path}.{key}", self.groups, self.share, own, minimum)
        self._shared |= {name: name if narrow else keys[0] for name in linears}

        @torch.no_grad()
        def entering(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if known := self._same_tensor(arguments[0]):
                self._accumulators.pop(keys[0], None)
                self._shared |= dict.fromkeys(linears, known)
                return
            self._read.append((arguments[0], keys[0]))
            for offset, sequence in enumerate(self._rows.of(arguments[0], group.expert)):
                self._accumulators[keys[0]].update(self._first + offset, sequence)

        def keep_product(linear: nn.Module, _: Any) -> None:
            if forward := product_of(linear):
                forward.keep = True

        def leaving(key: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            @torch.no_grad()
            def hook(linear: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
                known = self._bias_free(linear, output, group.expert)
                for offset, sequence in enumerate(self._rows.of(arguments[0], group.expert)):
                    z = None if known is None else known[offset]
                    self._accumulators[key].update(self._first + offset, sequence, z)

            return hook

        if not narrow:
            stack.enter_context(_hook(modules[linears[0]].register_forward_pre_hook(entering)))
        for key in keys if narrow else ():
            stack.enter_context(_hook(modules[key].register_forward_pre_hook(keep_product)))
            stack.enter_context(_hook(modules[key].register_forward_hook(leaving(key))))

    def _bias_free(self, linear: nn.Module, output: Tensor, expert: int | None) -> Sequence[Tensor] | None:
        """Return `W x` of every sequence from the forward's output; `None` where it is known in 16 bits only, which would lose too much."""
        if (forward := product_of(linear)) and (unrounded := forward.take()) is not None:
            output = unrounded
        if output.dtype not in (torch.float32, torch.float64):
            return None
        bias: Tensor | None = linear.bias  # type: ignore[assignment]
        return self._rows.of(output if bias is None else output - bias, expert)

    def _same_tensor(self, x: Tensor) -> str | None:
        """Return the known input that is this very tensor, where parallel branches read one norm."""
        return next((key for tensor, key in self._read if tensor is x), None)

    def _watch_branch(self, stack: ExitStack, sublayer: Sublayer) -> None:
        stream, branch = (CosineAccumulator(f"{self.path}.{sublayer.name}", self.share) for _ in range(2))
        self._cosines[sublayer.name] = (stream, branch)
        kinds = {kind: CosineAccumulator(f"{self.path}.{sublayer.name}", self.share) for kind in KINDS}
        self._apart |= {f"{sublayer.name}/{kind}": each for kind, each in kinds.items()}
        parallel, scale = self.entry.is_parallel(self.config), self.entry.branch_scale(self.config)

        @torch.no_grad()
        def leave(_: nn.Module, __: Any, output: Any) -> None:
            added = hidden_states_of(output).reshape(self._entered.shape)
            added = added if scale == 1.0 else added * scale
            before = self._entered if parallel else self._stream
            after = before + added
            for offset, (a, b) in enumerate(zip(before, after, strict=True)):
                stream.update(self._first + offset, a, b)
                branch.update(self._first + offset, a, b - a)
                if self._images is not None:
                    masks = zip(kinds.values(), (self._images[offset], ~self._images[offset]), strict=True)
                    for kind, mask in masks:
                        kind.update(self._first + offset, a[mask], b[mask])
            self._stream = self._stream + added if parallel else after

        module = self.block.get_submodule(sublayer.output or sublayer.module)
        stack.enter_context(_hook(module.register_forward_hook(leave)))


def is_narrow(shapes: Sequence[tuple[int, ...]]) -> bool:
    """Return whether the outputs of the linears of an input, of these shapes (m, n), are together smaller than the input."""
    return sum(m * m for m, _ in shapes) < shapes[0][1] ** 2


@contextmanager
def _hook(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
