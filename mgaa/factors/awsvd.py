"""Activation-weighted SVD: input channels weighted by their norm over the calibration tokens (LoRAP, arXiv 2404.09695).

The paper gives its weights in two forms that disagree; this is the form that its code computes.
"""

from mgaa.decomposition.linalg import Metric
from mgaa.statistics.statistics import InputStatistics


def metric(statistics: InputStatistics) -> Metric:
    """`M = diag(G)`, the mean squares of the input channels."""
    return Metric(statistics.mean_square, side="input", scale=statistics.scale)
