"""Arithmetic of training: the dtype in which matrices are multiplied. The trained tensors are always float32.

- `float32`: frozen weights that are stored in half precision are held in float32 in the meantime (exactly, at the cost of a second copy).
- `bfloat16`, `float16`: autocast; weights keep their dtype. float16 has few exponent bits, so its gradients are scaled (the scaler of
  torch's AMP), which needs a GPU.
- `auto`: bfloat16 on a GPU that supports it, float16 on an older one. On a CPU bfloat16 where it has instructions for it (AVX512-BF16,
  which processors with AMX have too), otherwise float32: with such instructions a step through the demo backbone is about a quarter faster
  in bfloat16 (the command of docs/performance.md, with `recovery.precision=float32`), without them bfloat16 is emulated, and slower.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mgaa.errors import UsageError

_HALVES = (torch.bfloat16, torch.float16)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Resolve `auto` for a device; anything else is checked and returned.

    Raises:
        UsageError: the device does not support it.
    """
    on_gpu = device.type == "cuda"
    native = torch.cuda.is_bf16_supported(False) if on_gpu else torch.cpu._is_avx512_bf16_supported()
    if precision == "auto":
        return "bfloat16" if native else "float16" if on_gpu else "float32"
    if precision == "float16" and not on_gpu:
        raise UsageError(
            f"recovery.precision is float16 on {device}, which needs a GPU: take auto, bfloat16 or float32"
        )
    if precision == "bfloat16" and on_gpu and not native:
        raise UsageError(f"recovery.precision is bfloat16, which {device} does not support: take float16 or float32")
    return precision


@contextmanager
def hold_precision(model: nn.Module, precision: str) -> Iterator[None]:
    """Within this context, parameters in half precision are float32 if that is the precision; afterwards they are the stored ones."""
    stored = {
        parameter: parameter.data
        for parameter in model.parameters()
        if precision == "float32" and parameter.dtype in _HALVES
    }
    for parameter, data in stored.items():
        parameter.data = data.float()
    try:
        yield
    finally:
        for parameter, data in stored.items():
            parameter.data = data
