"""Uniform baseline: every sublayer loses the same share of its parameters."""

import torch
from jaxtyping import Float
from torch import Tensor

from mgaa.budget import Sublayers, fit_ratios


def allocate(sublayers: Sublayers, compression: float) -> Float[Tensor, " s"]:
    """`ratio_s = compression`."""
    return fit_ratios(torch.ones_like(sublayers.cosines), sublayers.parameters, compression, sublayers.reach)
