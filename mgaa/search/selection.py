"""Validation windows that best distinguish allocations.

A search evaluates its windows once per trial, so they should be few and informative. Bolaco (arXiv 2405.10616) measures random allocations
on many windows and keeps those whose perplexity varies most between them. Windows on which every allocation does equally well are not
informative.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mgaa.errors import UsageError


def most_telling(
    losses: Float[Tensor, "a n"], counts: Sequence[int], number: int
) -> tuple[Int[Tensor, " k"], Float[Tensor, " n"]]:
    """Return the windows with the largest variance of the perplexity over allocations, in file order, and the variances of all.

    Args:
        losses: sums over the scored tokens of each window, in nats, a row for each allocation.
        counts: scored tokens of each window.
        number: number of windows to keep.

    Raises:
        UsageError: fewer windows or allocations than needed.
    """
    allocations, windows = losses.shape
    if number > windows:
        raise UsageError(f"search.windows is {number}, expected at most {windows}, the candidates to choose from")
    if allocations < 2:
        raise UsageError(f"search.selection is {allocations}, expected at least 2 allocations to tell windows apart by")
    perplexities = (losses.double() / torch.tensor(counts, dtype=torch.float64)).exp()
    variances = perplexities.var(dim=0)
    chosen = variances.argsort(descending=True, stable=True)[:number]
    return chosen.sort().values, variances
