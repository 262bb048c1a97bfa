"""Assignment of the rows of an activation to sequences, also inside the experts of a mixture.

The linears of a block read all tokens of a micro-batch, an expert only those that the router sends it, in the order of the tokens. Sums by
sequence do not depend on the micro-batch, so the rows are assigned by the choices of the router.

Legend: s sequences of a micro-batch, t tokens of a sequence, n channels, k experts of a token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mgaa.models.architecture_schema import Architecture, has_module


class RoutedRows:
    """Rows of every sequence of the current micro-batch, in the inputs and outputs of a block's linears.

    Args:
        entry: of the architecture.
        block: the block.
    """

    def __init__(self, entry: Architecture, block: nn.Module) -> None:
        present = entry.experts and has_module(block, entry.experts)
        self._experts = block.get_submodule(entry.experts) if present else None
        self._sequences, self._routed = 0, torch.empty(0)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Within this context, record the choices of the router."""
        if self._experts is None:
            yield
            return
        handle = self._experts.register_forward_pre_hook(self._watch_router)
        try:
            yield
        finally:
            handle.remove()

    def enter(self, sequences: int) -> None:
        """Start a micro-batch of `sequences` sequences."""
        self._sequences = sequences

    def of(self, x: Float[Tensor, "*batch n"], expert: int | None) -> Sequence[Float[Tensor, "t n"]]:
        """Split the rows of an activation by sequence; an expert has fewer, and may have none."""
        if expert is None:
            return list(x.reshape(self._sequences, -1, x.shape[-1]))
        return torch.split(x, self._routed[expert].tolist())

    def _watch_router(self, experts: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Count the tokens of each sequence that every expert receives."""
        chosen: Int[Tensor, "s tk"] = arguments[1].reshape(self._sequences, -1)
        number = len(list(experts.children()))
        self._routed = torch.stack([(chosen == expert).sum(1) for expert in range(number)]).cpu()
