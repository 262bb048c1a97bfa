"""Kept shares that rise in proportion to importance, at most to the whole sublayer; what the full ones leave goes to the others."""

from jaxtyping import Float
from torch import Tensor

from mgaa.budget import fit_ratios


def allocate(
    cosines: Float[Tensor, " s"], parameters: Float[Tensor, " s"], compression: float, caps: Float[Tensor, " s"]
) -> Float[Tensor, " s"]:
    """What is kept above the floor `1 - cap_s` is proportional to `1 - c_s` (our choice; the paper states no equation)."""
    floors = 1 - caps
    total = parameters.sum()
    spread = (1 - compression) - float((floors * parameters).sum() / total)
    return caps - fit_ratios((1 - cosines).clamp(min=0.0), parameters, max(spread, 0.0), caps)
