"""Ratios that decrease exponentially with importance, controlled by a temperature.

A low temperature empties the least important sublayers, a high one approaches uniform ratios.
"""

from jaxtyping import Float
from torch import Tensor

from mgaa.budget import Sublayers, fit_ratios
from mgaa.errors import UsageError


def allocate(sublayers: Sublayers, compression: float, *, temperature: float = 0.1) -> Float[Tensor, " s"]:
    """`ratio_s` proportional to `exp(-(1 - c_s) / temperature)` (our choice; the paper states no equation).

    Raises:
        UsageError: the temperature is not positive.
    """
    if not temperature > 0:
        raise UsageError(f"ratios.temperature is {temperature}, expected a positive number such as 0.1")
    scores = ((sublayers.cosines - sublayers.cosines.max()) / temperature).exp()
    return fit_ratios(scores, sublayers.parameters, compression, sublayers.reach)
