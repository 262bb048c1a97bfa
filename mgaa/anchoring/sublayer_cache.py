"""What the sublayers of a block add, kept for every micro-batch, so that later passes through the same block need not compute it again.

A block is sent through several times while it is compressed (`mgaa.anchoring`), and the last time to leave it. Once the matrices of a
sublayer are done, its output does not change any more: it is kept, and stands in for the forward of the module.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mgaa.blocks.blockwise import first_of
from mgaa.models.architecture_schema import Sublayer


class Shortcuts:
    """Outputs of the sublayers of one block, by micro-batch; what was not kept is computed.

    Args:
        block: a decoder block.
        sublayers: of it, in the order of computation.
        active: whether anything is kept; it takes the memory of the hidden states once for every sublayer.
    """

    def __init__(self, block: nn.Module, sublayers: Sequence[Sublayer], *, active: bool = True) -> None:
        names = [sublayer.module for sublayer in sublayers if active and sublayer.module]
        self._modules = {name: block.get_submodule(name) for name in names}
        self._kept: dict[str, dict[int, Any]] = {name: {} for name in names}
        self._batch = -1

    def enter(self, batch: int, hidden: Tensor) -> None:
        """This micro-batch is next."""
        self._batch = batch

    def leave(self, hidden: Tensor) -> None:
        """It has left the block."""

    def has(self, name: str) -> bool:
        """Whether the outputs of this module can be kept."""
        return name in self._modules

    def keep(self, name: str, batch: int, output: Tensor, like: "Shortcuts") -> None:
        """What a module gives for a micro-batch, in the form in which `like` has kept it."""
        form = like._kept[name][batch]
        output = output.reshape(first_of(form).shape)
        self._kept[name][batch] = (output, *form[1:]) if isinstance(form, tuple) else output

    @contextmanager
    def attached(self, names: Sequence[str]) -> Iterator[None]:
        """Inside this context, what these modules compute is kept, and what was kept stands in for their forward."""
        with ExitStack() as stack:
            for name in names:
                if self.has(name):
                    stack.enter_context(self._standing_in(name))
            yield

    @contextmanager
    def _standing_in(self, name: str) -> Iterator[None]:
        module, kept = self._modules[name], self._kept[name]
        own, forward = vars(module).get("forward"), module.forward

        def stand_in(*positional: Any, **named: Any) -> Any:
            if self._batch not in kept:
                output = forward(*positional, **named)
                kept[self._batch] = (
                    (first_of(output), *(None for _ in output[1:])) if isinstance(output, tuple) else output
                )
            return _copied(kept[self._batch])  # some blocks add to it in place

        module.forward = stand_in
        try:
            yield
        finally:
            del module.forward
            if own is not None:
                module.forward = own


def _copied(output: Any) -> Any:
    return (output[0].clone(), *output[1:]) if isinstance(output, tuple) else output.clone()


def waiting_bytes(tokens: int, hidden: int, width: int, itemsize: int) -> int:
    """Of all tokens while a block is anchored, where what its sublayers add is kept.

    They are there in front of the block, and as what its two sublayers add, each in two models; and once as what the last linear reads.

    Args:
        tokens: of the calibration.
        hidden, width: of the model, and of the widest input of a linear that writes to the residual stream.
        itemsize: bytes of a number.
    """
    return tokens * (6 * hidden + width) * itemsize
