"""Kronecker-factored loss metric: errors weighted by their second-order effect on the loss.

An error `E = W - W'` of a layer changes the loss by `g^T E x` for a token with centred input `x` and output gradient `g`. If `x` and `g`
are taken as independent, the mean square of this change is `||L^T E S||^2` with `L L^T = E[g g^T]` and `S S^T = Cov(x)`: the layer's block
of the empirical Fisher information, factored as in K-FAC (Martens and Grosse, arXiv 1503.05671). The best approximation of any rank in this
norm comes from one decomposition, centred and with a bias as in `afm`, and energies are comparable between all matrices of a model, as the
allocation `loss` requires. Our choice; with isotropic gradients of equal size everywhere it equals `afm`.
"""

import math

import torch

from mgaa.decomposition.linalg import Metric
from mgaa.errors import UsageError
from mgaa.methods import Traits
from mgaa.statistics.statistics import InputStatistics

TRAITS = Traits(centred=True, gradients=True)


def metric(statistics: InputStatistics, *, damping: float = 1e-4) -> Metric:
    """`M = Cov(x)` on the measured side, and `Gamma = E[g g^T] + damping tr(E[g g^T]) / m I` at the outputs.

    Args:
        damping: relative weight of the identity, for directions without gradients. 1e-2 and 1e-4 differ by less than 2 % in the loss.

    Raises:
        UsageError: no gradients were measured, or the damping is not a positive number.
    """
    gradient = statistics.gradient
    if not 0 < damping < math.inf:
        raise UsageError(f"factors.damping is {damping}, expected a positive number such as 1e-4")
    if gradient is None:
        raise UsageError(
            "factors.method is 'kronecker', but the statistics have no output gradients, expected those of every linear: measure them by "
            "mgaa.statistics.gradients"
        )
    identity = torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device)
    size = float(gradient.trace()) / len(gradient)
    silent = size == 0  # an output without effect; not so where it is NaN, which is refused where it is decomposed
    return Metric(
        moment=statistics.covariance,
        side=statistics.side,
        scale=0.0 if silent else statistics.centred_scale,
        mean=statistics.mean,
        output=None if silent else gradient + damping * size * identity,
    )
