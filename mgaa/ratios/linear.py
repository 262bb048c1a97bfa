"""Ratios proportional to the cosine: no hyper-parameter, and small differences, since cosines of real models are close together."""

from jaxtyping import Float
from torch import Tensor

from mgaa.budget import Sublayers, fit_ratios


def allocate(sublayers: Sublayers, compression: float) -> Float[Tensor, " s"]:
    """`ratio_s` proportional to `max(c_s, 0)` (our choice; the paper states no equation)."""
    return fit_ratios(sublayers.cosines.clamp(min=0.0), sublayers.parameters, compression, sublayers.reach)
