"""Level 1 of MGAA: compression ratios between sublayers (arXiv 2507.03294).

The paper assigns ratios "based on their cosine similarity between inputs and outputs"; no equation is stated, so every map here is
our decision. With `c_s` the mean cosine of the residual stream before and after sublayer s, its importance is `1 - c_s`: a sublayer
that hardly changes the direction of the stream may lose more. Each file holds one map `allocate(sublayers, compression, *, options)` from
the known quantities of sublayers (`mgaa.budget.Sublayers`) to their ratios, which meets the parameter-weighted budget
`sum_s P_s ratio_s = compression sum_s P_s` exactly.

Legend: s sublayers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mgaa.budget import FURTHER, Sublayers, bound_ratios
from mgaa.errors import UsageError
from mgaa.methods import load_method


def allocate_ratios(
    name: str,
    cosines: Mapping[str, float],
    parameters: Mapping[str, int],
    reach: Mapping[str, float],
    *,
    compression: float,
    band: float | str | None = None,
    **options: Any,
) -> dict[str, float]:
    """The ratio of every sublayer.

    Args:
        name, options: the map and its keyword arguments.
        cosines: mean cosine by sublayer.
        parameters: linear parameters by sublayer.
        reach: largest ratio that the ranks of each sublayer allow.
        compression: fraction of all linear parameters to remove.
        band: no ratio departs from `compression` by more than this; `auto`: by more than `automatic_band`; `None` for no other bound
            than `reach`. The cosines say which sublayer matters more, not how much its parameters are worth: without a bound, one outlier
            (often the first block, whose input is the small embedding) is spared entirely at the expense of all others.

    Raises:
        UsageError: unknown method or option, a band that is not positive, or a budget out of reach.
    """
    function = load_method("ratios", name, options)
    width = automatic_band(cosines) if band == "auto" else band
    if isinstance(width, str) or (width is not None and not width > 0):
        raise UsageError(
            f"ratios.band is {band}, expected a positive number such as 0.1 (a difference of ratios), auto or null"
        )
    sublayers = _sublayers(cosines, parameters, reach, compression, width)
    _check_reach(sublayers.reach, sublayers.parameters, compression, "", FURTHER)
    cause = f"ratios.band is {band if band == width else f'auto, {width:g} for this depth'}: "
    _check_reach(sublayers.caps, sublayers.parameters, compression, cause, "widen it or leave it out")
    ratios = function(sublayers, compression, **options)
    bounded = bound_ratios(ratios, sublayers.parameters, compression, sublayers.floors, sublayers.caps)
    return dict(zip(sublayers.names, bounded.tolist(), strict=True))


def automatic_band(sublayers: Iterable[str]) -> float:
    """Band for a model with these sublayers, named `<block>.<sublayer>`: 0.1 up to 8 blocks, and 1/80 for each further one.

    Our choice, because a sublayer that is spared costs the others its share of the budget, which falls with the depth: on models of 5 and 8
    blocks wider bands are worse than uniform ratios at 0.4, on one of 30 blocks they gain most (docs/log.md, level 1).
    """
    return max(0.1, len({name.partition(".")[0] for name in sublayers}) / 80)


def _sublayers(
    cosines: Mapping[str, float],
    parameters: Mapping[str, int],
    reach: Mapping[str, float],
    compression: float,
    band: float | None,
) -> Sublayers:
    """The sublayers in the order of `cosines`; without a band they are bounded by their reach alone."""

    def vector(values: Mapping[str, float | int]) -> Float[Tensor, " s"]:
        return torch.tensor([values[name] for name in cosines], dtype=torch.float64)

    limits, width = vector(reach), 1.0 if band is None else band
    caps = limits.clamp(max=compression + width)
    floors = caps.clamp(max=max(0.0, compression - width))
    return Sublayers(tuple(cosines), vector(cosines), vector(parameters), limits, floors, caps)


def _check_reach(
    caps: Float[Tensor, " s"], weights: Float[Tensor, " s"], compression: float, cause: str, remedy: str
) -> None:
    """Refuse bounds under which the sublayers together cannot lose as much as `compression`."""
    largest = float((caps * weights).sum() / weights.sum())
    if largest < compression * (1 - 1e-9):
        raise UsageError(
            f"{cause}compression {compression} is out of reach: with all matrices at their lowest ranks the largest reachable "
            f"compression is {int(1e4 * largest) / 1e4:.4f} ({remedy})"
        )
