"""The baseline: every sublayer loses the same share of its parameters."""

import torch
from jaxtyping import Float
from torch import Tensor

from mgaa.budget import fit_ratios


def allocate(
    cosines: Float[Tensor, " s"], parameters: Float[Tensor, " s"], compression: float, caps: Float[Tensor, " s"]
) -> Float[Tensor, " s"]:
    """`ratio_s = compression`."""
    return fit_ratios(torch.ones_like(cosines), parameters, compression, caps)
