"""Cache of sublayer outputs by micro-batch, so that later passes through the same block need not compute them again.

While a block is compressed (`mgaa.anchoring`), the micro-batches pass through it several times, and a last time to leave it. Once all
matrices of a sublayer are compressed, its output no longer changes: it is cached, and replaces the forward of the module.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from mgaa.blocks.blockwise import hidden_states_of
from mgaa.models.architecture_schema import Sublayer


class SublayerCache:
    """Outputs of the sublayers of one block, by micro-batch; those that are not cached are computed.

    Args:
        block: a decoder block.
        sublayers: of the block, in the order of computation.
        active: whether anything is cached; the cache takes the memory of the hidden states once per sublayer.
    """

    def __init__(self, block: nn.Module, sublayers: Sequence[Sublayer], *, active: bool = True) -> None:
        names = [sublayer.module for sublayer in sublayers if active and sublayer.module]
        self._modules = {name: block.get_submodule(name) for name in names}
        self._kept: dict[str, dict[int, Any]] = {name: {} for name in names}
        self._batch = -1

    def enter(self, batch: int, hidden: Tensor) -> None:
        """Start a pass of this micro-batch through the block."""
        self._batch = batch

    def leave(self, hidden: Tensor) -> None:
        """End the pass through the block."""

    def has(self, name: str) -> bool:
        """Return whether the outputs of this module can be cached."""
        return name in self._modules

    def keep(self, name: str, batch: int, output: Tensor, like: "SublayerCache") -> None:
        """Cache the output of a module for a micro-batch, in the form in which `like` holds it."""
        form = like._kept[name][batch]
        output = output.reshape(hidden_states_of(form).shape)
        self._kept[name][batch] = (output, *form[1:]) if isinstance(form, tuple) else output

    @contextmanager
    def attach(self, names: Sequence[str]) -> Iterator[None]:
        """Within this context, cache what these modules compute, and let cached outputs replace their forward."""
        with ExitStack() as stack:
            for name in names:
                if self.has(name):
                    stack.enter_context(self._replace_forward(name))
            yield

    @contextmanager
    def _replace_forward(self, name: str) -> Iterator[None]:
        module, kept = self._modules[name], self._kept[name]
        own, forward = vars(module).get("forward"), module.forward

        def stand_in(*positional: Any, **named: Any) -> Any:
            if self._batch not in kept:
                output = forward(*positional, **named)
                kept[self._batch] = (
                    (hidden_states_of(output), *(None for _ in output[1:])) if isinstance(output, tuple) else output
                )
            return _copied(kept[self._batch])  # a copy, because some blocks add to it in place

        module.forward = stand_in
        try:
            yield
        finally:
            del module.forward
            if own is not None:
                module.forward = own


def _copied(output: Any) -> Any:
    return (output[0].clone(), *output[1:]) if isinstance(output, tuple) else output.clone()


def cache_bytes(tokens: int, hidden: int, width: int, itemsize: int) -> int:
    """Return the bytes of all hidden states while a block is anchored with a cache.

    They are held at the input of the block and as the outputs of its two sublayers, each in two models; and once as the input of the last
    linear.

    Args:
        tokens: of the calibration.
        hidden: width of the model.
        width: of the widest input of a linear that writes to the residual stream.
        itemsize: bytes of a number.
    """
    return tokens * (6 * hidden + width) * itemsize
