"""Whitened SVD: least output error on calibration inputs, without a bias (SVD-LLM, arXiv 2403.07378).

Equivalent to the SVD of `W S` with the Cholesky factor `S` of `G = E[x x^T]`, without forming or inverting `S`.
"""

from mgaa.decomposition.linalg import Metric
from mgaa.statistics.statistics import InputStatistics


def metric(statistics: InputStatistics) -> Metric:
    """`M = G = Cov(x) + mean mean^T`, on the measured side."""
    mean = statistics.side_mean
    return Metric(
        moment=statistics.covariance + mean.outer(mean),
        side=statistics.side,
        scale=statistics.scale,
    )
