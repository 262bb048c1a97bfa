"""Common energy: all matrices of a sublayer keep the same share of their spectral energy (MGAA, level 2, arXiv 2507.03294).

The paper asks for "a consistent energy retention ratio"; we take the largest common ratio within the budget. Starting from the lowest rungs
and always raising the matrix with the least energy reaches exactly that (`mgaa.budget`).
"""

from collections.abc import Sequence

from mgaa.budget import Ladder, refill
from mgaa.errors import UsageError


def allocate(ladders: Sequence[Ladder], budget: int, *, power: float = 1.0) -> list[int]:
    """Rungs of the largest common energy within `budget` parameters, then a refill inside the sublayer.

    Args:
        power: exponent of the energies; 1 counts squared singular values, 0.5 singular values.

    Raises:
        UsageError: the power is not positive.
    """
    if not power > 0:
        raise UsageError(f"ranks.power is {power}, expected a positive number such as 1.0 or 0.5")
    return refill([ladder.weighed(power) for ladder in ladders], [0] * len(ladders), budget)
