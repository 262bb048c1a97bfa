"""Activation-aware SVD: input channels weighted by their mean absolute value (ASVD, arXiv 2312.05821).

Equivalent to the SVD of `W S` with `S = diag(mean_t |x_j|)^alpha`, times the inverse of `S`. The inverse is never formed, so dead channels
need no special case. A larger `alpha` favours channels with large activations over the plain SVD; the paper uses 0.5.
"""

import math

from mgaa.decomposition.linalg import Metric
from mgaa.errors import UsageError
from mgaa.statistics.statistics import InputStatistics


def metric(statistics: InputStatistics, *, alpha: float = 0.5) -> Metric:
    """`M = S S^T = diag(mean_t |x_j|)^(2 alpha)`.

    Raises:
        UsageError: `alpha` is not a positive number.
    """
    if not 0 < alpha < math.inf:
        raise UsageError(
            f"factors.alpha is {alpha}, expected a positive number such as 0.5 (for none, take method svd)"
        )
    moment = statistics.mean_abs ** (2 * alpha)
    return Metric(moment, side="input", scale=float(moment.mean()))
