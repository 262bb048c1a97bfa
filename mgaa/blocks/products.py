"""Products of 16-bit linears in float32, where the processor computes those faster than products in 16 bits.

A product of 16-bit numbers is exact in float32, and any kernel sums in float32 and rounds the sum once. So `(W x)` in float32, rounded, is
the linear's own output but for the order of the sum. A processor without tiles for 16 bits (AMX) computes it up to twice as fast that way,
and the sum before rounding is what the statistics need.

Legend: n inputs, m outputs of a linear.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

_TILES = {torch.bfloat16: "amx_bf16", torch.float16: "amx_fp16"}
"""Capability of the processor that makes its products in 16 bits the faster ones."""


class Float32Product:
    """Forward of a 16-bit linear, in float32 and rounded.

    Attributes:
        keep: whether the next product is kept until it is taken.
    """

    def __init__(self, linear: nn.Linear) -> None:
        self._linear, self.keep = linear, False
        self._product: Tensor | None = None

    def __call__(self, x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows m"]:
        """Compute `W x + b`, in the dtype of `x`."""
        bias: Tensor | None = self._linear.bias
        product = nn.functional.linear(x.float(), self._linear.weight.float(), None if bias is None else bias.float())
        if self.keep:
            self._product = product
        return product.to(x.dtype)

    def take(self) -> Float[Tensor, "*rows m"] | None:
        """Return the last product before it was rounded, once; `None` where none was kept."""
        product, self._product, self.keep = self._product, None, False
        return product


@contextmanager
def float32_products(block: nn.Module) -> Iterator[None]:
    """Within this context, the 16-bit linears of a block compute in float32 and round, where that is faster; no effect elsewhere.

    The block must be resident (`mgaa.blocks.offload`).
    """
    swapped = [
        module
        for module in block.modules()
        if type(module) is nn.Linear and "forward" not in vars(module) and _is_slow(module.weight)
    ]
    try:
        for linear in swapped:
            linear.forward = Float32Product(linear)  # type: ignore[method-assign, assignment]
        yield
    finally:
        for linear in swapped:
            del linear.forward


def product_of(linear: nn.Module) -> Float32Product | None:
    """Return the forward of a linear inside `float32_products`; `None` where it has its own."""
    forward = vars(linear).get("forward")
    return forward if isinstance(forward, Float32Product) else None


def _is_slow(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in _TILES and not _has_tiles(weight.dtype)


@cache
def _has_tiles(dtype: torch.dtype) -> bool:
    return bool(torch.cpu.get_capabilities().get(_TILES[dtype]))
