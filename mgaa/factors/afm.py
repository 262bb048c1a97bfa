"""Atomic feature mimicking: principal components of the centred output, and a bias for its mean.

The metric is the covariance of the input; the mean returns exactly through the bias `b' = c + (W - B A) mean`. Never worse in layer
error than the whitened SVD without a bias (AFM: arXiv 2210.17126; LoRAP's baseline of the name leaves the bias out and is far worse).
"""

from mgaa.decomposition.linalg import Metric
from mgaa.methods import Traits
from mgaa.statistics.statistics import InputStatistics

TRAITS = Traits(centred=True)


def metric(statistics: InputStatistics) -> Metric:
    """`M = Cov(x) = G - mean mean^T`, on the side that was measured."""
    return Metric(
        moment=statistics.covariance,
        side=statistics.side,
        scale=statistics.centred_scale,
        mean=statistics.mean,
    )
