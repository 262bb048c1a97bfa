"""Ratios proportional to the cosine: no hyper-parameter, and gentle, because cosines of real models lie close together."""

from jaxtyping import Float
from torch import Tensor

from mgaa.budget import fit_ratios


def allocate(
    cosines: Float[Tensor, " s"], parameters: Float[Tensor, " s"], compression: float, caps: Float[Tensor, " s"]
) -> Float[Tensor, " s"]:
    """`ratio_s` proportional to `max(c_s, 0)` (our choice; the paper states no equation)."""
    return fit_ratios(cosines.clamp(min=0.0), parameters, compression, caps)
