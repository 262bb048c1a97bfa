"""Level 1 of MGAA: compression ratios between sublayers (arXiv 2507.03294).

The paper assigns ratios "based on their cosine similarity between inputs and outputs"; no equation is stated, so every map here is
our decision. With `c_s` the mean cosine of the residual stream before and after sublayer s, its importance is `1 - c_s`: a sublayer
that hardly turns the stream may lose more. Each file holds one map `allocate(cosines, parameters, compression, caps, *, options)`,
and each meets the parameter-weighted budget `sum_s P_s ratio_s = compression sum_s P_s` exactly.

Legend: s sublayers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mgaa.errors import UsageError
from mgaa.methods import method


def allocate_ratios(
    name: str,
    cosines: Mapping[str, float],
    parameters: Mapping[str, int],
    reach: Mapping[str, float],
    *,
    compression: float,
    cap: float | None = None,
    **options: Any,
) -> dict[str, float]:
    """The ratio of every sublayer.

    Args:
        name, options: the map and its keyword arguments.
        cosines: mean cosine by sublayer.
        parameters: linear parameters by sublayer.
        reach: largest ratio that the ranks of each sublayer allow.
        compression: fraction of all linear parameters to remove.
        cap: largest ratio of any sublayer, as a multiple of `compression`; `None` for no other bound than `reach`.

    Raises:
        UsageError: unknown method or option, or a cap that leaves the budget out of reach.
    """
    function = method("ratios", name, options)
    if cap is not None and not cap >= 1:
        raise UsageError(f"ratios.cap is {cap}, expected at least 1 (a multiple of ratios.compression) or null")
    caps = [reach[s] if cap is None else min(cap * compression, reach[s]) for s in cosines]
    _check_caps(caps, [reach[s] for s in cosines], [parameters[s] for s in cosines], compression, cap)
    ratios = function(
        torch.tensor(list(cosines.values()), dtype=torch.float64),
        torch.tensor([parameters[s] for s in cosines], dtype=torch.float64),
        compression,
        torch.tensor(caps, dtype=torch.float64),
        **options,
    )
    return dict(zip(cosines, ratios.tolist(), strict=True))


def _check_caps(
    caps: Sequence[float], reach: Sequence[float], parameters: Sequence[int], compression: float, cap: float | None
) -> None:
    """Refuse bounds under which the sublayers together cannot lose as much as `compression`."""
    capped, free = (sum(b * p for b, p in zip(bounds, parameters, strict=True)) for bounds in (caps, reach))
    wanted, total = compression * sum(parameters), sum(parameters)
    if free < wanted * (1 - 1e-9):
        raise UsageError(
            f"compression {compression} is out of reach: with all matrices at their lowest ranks the largest reachable compression is "
            f"{int(1e4 * free / total) / 1e4:.4f} (a smaller ranks.multiple reaches further)"
        )
    if capped < wanted * (1 - 1e-9):
        raise UsageError(
            f"ratios.cap is {cap}, which together with the lowest ranks allows a compression of at most "
            f"{int(1e4 * capped / total) / 1e4:.4f}, expected {compression}: raise ratios.cap or leave it out"
        )
