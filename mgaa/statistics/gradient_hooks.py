"""Gradient observer of one decoder block: gradients of the loss at the outputs of its linears (`mgaa.statistics.gradients`).

A hook on the output of every linear receives the gradient, which is the same with and without the bias. Sums are in float64, one sequence
after the other.

Legend: t tokens of a sequence, m outputs of a linear.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mgaa.errors import InputError, NumericalError
from mgaa.models.architecture_schema import Group
from mgaa.models.architectures import Stack
from mgaa.models.expert_routing import RoutedRows
from mgaa.statistics.accumulate import add_gram_
from mgaa.statistics.accumulate import explain_unreached as unreached_message

Gradients = dict[str, Float[Tensor, "m m"]]
"""By linear of a block: the second moment of the gradients of its output, float64."""


class GradientObserver:
    """Sums the gradients at the outputs of the linears of a block.

    Args:
        stack, index: the block.
        ranges: the sequences of each micro-batch.
    """

    def __init__(self, stack: Stack, index: int, ranges: Sequence[range]) -> None:
        self._block, self._path, self._ranges = stack.blocks[index], stack.path(index), ranges
        self._rows, self._first = RoutedRows(stack.entry, self._block), 0
        self._groups = [group for sublayer in stack.entry.sublayers for group in sublayer.groups(self._block)]
        self._sums = dict[str, Tensor]()

    @contextmanager
    def attach(self) -> Iterator[None]:
        """Within this context, hooks are attached to the linears."""
        with ExitStack() as stack:
            stack.enter_context(self._rows.watch())
            for group in self._groups:
                for linear in group.linears:
                    handle = self._block.get_submodule(linear).register_forward_hook(self._forward(linear, group))
                    stack.callback(handle.remove)
            yield

    def enter(self, batch: int, _: Tensor) -> None:
        """Start the forward pass of a micro-batch."""
        self._first = self._ranges[batch].start
        self._rows.enter(len(self._ranges[batch]))

    def leave(self, _: Tensor) -> None:
        """End the forward pass; the gradients follow."""

    def finish(self, tokens: int, unreached: str = "stop") -> Gradients:
        """Return the moments over this number of tokens.

        Args:
            unreached: as in `mgaa.statistics.calibration.CalibrationSettings`; linears of experts that stay dense have no moment.

        Raises:
            InputError: no token reached an expert.
        """
        return {
            linear: self._moment(linear, tokens)
            for group in self._groups
            for linear in group.linears
            if linear in self._sums or group.expert is None or unreached == "stop"
        }

    def _moment(self, linear: str, tokens: int) -> Float[Tensor, "m m"]:
        if linear not in self._sums:
            raise InputError(unreached_message(f"{self._path}.{linear}"))
        moment = self._sums.pop(linear).triu_()
        moment += moment.triu(1).T
        return moment.div_(tokens)

    def _forward(self, linear: str, group: Group) -> Callable[[nn.Module, Any, Tensor], None]:
        def add(gradient: Tensor) -> None:
            for offset, rows in enumerate(self._rows.of(gradient, group.expert)):
                self._add(linear, rows, self._first + offset)

        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            output.register_hook(add)  # type: ignore[no-untyped-call]

        return hook

    def _add(self, linear: str, rows: Float[Tensor, "t m"], sequence: int) -> None:
        if len(rows) == 0:
            return
        check_finite(rows, f"the output of {self._path}.{linear}", sequence)
        if linear not in self._sums:
            self._sums[linear] = rows.new_zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        add_gram_(self._sums[linear], rows.to(torch.promote_types(rows.dtype, torch.float32)))


def check_finite(gradient: Float[Tensor, "t _"], of: str, sequence: int) -> None:
    """Refuse a gradient that is not finite.

    Args:
        gradient: of the tokens of one sequence.
        of: description of the differentiated tensor, for the message.
        sequence: its index.

    Raises:
        NumericalError: an entry is not finite.
    """
    if not math.isfinite(float(gradient.sum())) and not bool(torch.isfinite(gradient).all()):
        raise NumericalError(
            f"the gradient of {of} has {int((~torch.isfinite(gradient)).sum())} non-finite entries in calibration sequence {sequence}, "
            "expected none: the loss or its backward pass overflows; check the weights or set backbone.dtype to bfloat16 or float32"
        )
