"""Kept shares proportional to importance, at most the whole sublayer; what full sublayers cannot use goes to the others."""

from jaxtyping import Float
from torch import Tensor

from mgaa.budget import Sublayers, fit_ratios


def allocate(sublayers: Sublayers, compression: float) -> Float[Tensor, " s"]:
    """What is kept above the floor `1 - reach_s` is proportional to `1 - c_s` (our choice; the paper states no equation)."""
    parameters, reach = sublayers.parameters, sublayers.reach
    spread = (1 - compression) - float(((1 - reach) * parameters).sum() / parameters.sum())
    return reach - fit_ratios((1 - sublayers.cosines).clamp(min=0.0), parameters, max(spread, 0.0), reach)
