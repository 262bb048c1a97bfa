"""Principal components of the output inside groups of sequences, each centred at its own mean (Bolaco, arXiv 2405.10616).

What the groups differ by is not counted as variance; the bias returns the mean of all tokens. The paper averages the covariances of the
groups with equal weights; here a group weighs as many tokens as it has, which is the textbook's pooled covariance and the same for
groups of equal counts. Fewer calibration sequences than groups are refused before anything is measured (`mgaa.levels.check_groups`).
"""

from mgaa.decomposition.linalg import Metric
from mgaa.methods import Traits
from mgaa.statistics.statistics import InputStatistics

TRAITS = Traits(centred=True, grouped=True)

ROUNDING = 1e-12
"""Share of the variance inside groups below which it is the rounding of a difference (groups of one token have none)."""


def metric(statistics: InputStatistics) -> Metric:
    """`M = sum_k (n_k / n) Cov_k = Cov(x) - sum_k (n_k / n) (mean_k - mean) (mean_k - mean)^T`, on the side that was measured.

    Equals `G - sum_k (n_k / n) mean_k mean_k^T`, without its cancellation where means are large. What the difference leaves is as
    precise as `Cov(x)` is, so the damping is relative to `Cov(x)` too.
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
