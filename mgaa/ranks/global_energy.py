"""Common energy of the whole model: level 2 of MGAA (`mgaa.ranks.energy`) across all matrices, in place of both levels.

Within a sublayer the paper asks for "a consistent energy retention ratio" (arXiv 2507.03294); this is the same sentence with the model for
the sublayer. Ratios then follow from the spectra, and level 1 has no effect: the ablation that says what the cosines add to the energies.
"""

from collections.abc import Sequence

from mgaa.budget import Ladder
from mgaa.methods import Traits
from mgaa.ranks import energy

TRAITS = Traits(whole_model=True)


def allocate(ladders: Sequence[Ladder], budget: int, *, power: float = 1.0) -> list[int]:
    """Rungs of the largest common energy of all matrices of the model within `budget` parameters.

    Args:
        power: exponent of the energies; 1 counts squared singular values, 0.5 singular values.

    Raises:
        UsageError: the power is not positive.
    """
    return energy.allocate(ladders, budget, power=power)
