"""Atomic feature mimicking: principal components of the centred output, and a bias for its mean.

The metric is the covariance of the input; the mean is restored exactly by the bias `b' = c + (W - B A) mean`. Its layer error is never
larger than that of the whitened SVD without a bias (AFM: arXiv 2210.17126; LoRAP's baseline of that name omits the bias and is far worse).
"""

from mgaa.decomposition.linalg import Metric
from mgaa.methods import Traits
from mgaa.statistics.statistics import InputStatistics

TRAITS = Traits(centred=True)


def metric(statistics: InputStatistics) -> Metric:
    """`M = Cov(x) = G - mean mean^T`, on the measured side."""
    return Metric(
        moment=statistics.covariance,
        side=statistics.side,
        scale=statistics.centred_scale,
        mean=statistics.mean,
    )
