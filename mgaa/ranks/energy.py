"""A common energy: all matrices of a sublayer keep the same share of their spectra (MGAA, level 2, arXiv 2507.03294).

The paper asks for "a consistent energy retention ratio"; the largest common one that fits the budget is our reading. Starting from
the lowest rungs and always lifting the matrix with the least energy reaches exactly it (`mgaa.budget`).
"""

from collections.abc import Sequence

from mgaa.budget import Ladder, refill
from mgaa.errors import UsageError


def allocate(ladders: Sequence[Ladder], budget: int, *, power: float = 1.0) -> list[int]:
    """Rungs of the largest common energy within `budget` parameters, then a refill inside the sublayer.

    Args:
        power: exponent on the energies; 1 weighs by squared error, 0.5 sums singular values.

    Raises:
        UsageError: the power is not positive.
    """
    if not power > 0:
        raise UsageError(f"ranks.power is {power}, expected a positive number such as 1.0 or 0.5")
    return refill([ladder.weighed(power) for ladder in ladders], [0] * len(ladders), budget)
