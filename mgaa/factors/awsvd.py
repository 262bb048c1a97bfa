"""Activation-weighted SVD: every input channel weighted by its norm over the calibration tokens (LoRAP, arXiv 2404.09695).

The paper prints its weights in two forms that disagree; this is the one that its code computes.
"""

from mgaa.decomposition.linalg import Metric
from mgaa.statistics.statistics import InputStatistics


def metric(statistics: InputStatistics) -> Metric:
    """`M = diag(G)`, the mean square of every input channel."""
    return Metric(statistics.mean_square, side="input", scale=statistics.scale)
