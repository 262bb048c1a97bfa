"""Pooled covariance: principal components within groups of sequences, each group centred at its own mean (Bolaco, arXiv 2405.10616).

Differences between groups do not count as variance; the bias restores the mean of all tokens. The paper averages the covariances of groups
with equal weights; here each group is weighted by its tokens, the textbook's pooled covariance, which is the same for groups of equal
size. Fewer calibration sequences than groups are refused before anything is measured (`mgaa.levels.check_groups`).
"""

from mgaa.decomposition.linalg import Metric
from mgaa.methods import Traits
from mgaa.statistics.statistics import InputStatistics

TRAITS = Traits(centred=True, grouped=True)

ROUNDING = 1e-12
"""Relative variance within groups below which it is a rounding error (groups of one token have none)."""


def metric(statistics: InputStatistics) -> Metric:
    """`M = sum_k (n_k / n) Cov_k = Cov(x) - sum_k (n_k / n) (mean_k - mean) (mean_k - mean)^T`, on the measured side.

    Equals `G - sum_k (n_k / n) mean_k mean_k^T`, without its cancellation for large means. The difference is as precise as `Cov(x)`, so the
    damping is relative to `Cov(x)` too.
    """
    between = statistics.group_means - statistics.side_mean
    weights = statistics.group_counts.to(between) / statistics.count
    moment = statistics.covariance - (between.T * weights) @ between
    constant = moment.trace() < ROUNDING * statistics.covariance.trace()
    return Metric(
        moment=moment,
        side=statistics.side,
        scale=0.0 if constant else statistics.centred_scale,
        mean=statistics.mean,
    )
