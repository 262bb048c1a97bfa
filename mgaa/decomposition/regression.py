"""Regression of a weight: the weight that on the inputs of the compressed model comes closest to the outputs of the dense one.

`x'` are the inputs of the compressed model, `d` the residual of its outputs (`W d`, where `d` is measured at the inputs). The least-squares
solution, damped towards the weight itself, is `W' = W + Cov(d, x') (Cov(x') + damping tr(Cov(x')) / n I)^-1`, with a bias for the means;
without a bias the moments are taken around zero. Products are float32 (float64 for a float64 model), and are summed in float64, sequence by
sequence; inputs are measured from the mean of the first sequence, so that a large mean does not cancel.

Legend: t tokens of a sequence, n inputs, m outputs, k = n, or m where `d` is measured at the outputs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mgaa.errors import NumericalError
from mgaa.statistics.accumulate import column_sums
from mgaa.statistics.statistics import InputStatistics


@dataclass(frozen=True)
class ResidualMoments:
    """Moments of the residual with the inputs of the compressed model, over all tokens, float64.

    Attributes:
        mean: `E[d]`.
        covariance: `Cov(d, x')`.
    """

    mean: Float[Tensor, " k"]
    covariance: Float[Tensor, "k n"]

    def at_outputs(self, weight: Float[Tensor, "m n"]) -> "ResidualMoments":
        """Return the moments of `W d`."""
        return ResidualMoments(weight @ self.mean, weight @ self.covariance)


class ResidualAccumulator:
    """Collects `ResidualMoments` sequence by sequence."""

    def __init__(self) -> None:
        self._count = 0
        self._origin = self._arrived = self._missing = self._products = torch.empty(0)

    def update(self, missing: Float[Tensor, "t k"], arrived: Float[Tensor, "t n"]) -> None:
        """Add the tokens of one sequence."""
        precise = torch.promote_types(arrived.dtype, torch.float32)
        missing, arrived = missing.to(precise), arrived.to(precise)
        if self._count == 0:
            self._origin = column_sums(arrived) / len(arrived)
            self._arrived, self._missing = (x.new_zeros(x.shape[1], dtype=torch.float64) for x in (arrived, missing))
            self._products = self._arrived.new_zeros(missing.shape[1], arrived.shape[1])
        arrived = arrived - self._origin
        self._products += missing.T @ arrived
        self._arrived += column_sums(arrived)
        self._missing += column_sums(missing)
        self._count += len(arrived)

    def finish(self) -> ResidualMoments:
        """Return the moments of everything added so far."""
        mean = self._missing / self._count
        return ResidualMoments(mean, self._products / self._count - mean.outer(self._arrived / self._count))


def solve_regression(
    weight: Float[Tensor, "m n"],
    missing: ResidualMoments | None,
    arrived: InputStatistics,
    *,
    damping: float,
    centred: bool,
    name: str,
) -> tuple[Float[Tensor, "m n"], Float[Tensor, " m"] | None]:
    """Return `W'`, and the addition to the bias where one is allowed; float64.

    Args:
        missing: residual at the outputs; `None` for none, so that `W'` is the weight.
        arrived: statistics of the inputs, on the input side.
        damping: relative to the mean square of an input channel, around the mean where centred.
        centred: whether a bias absorbs the means.
        name: of the linear, for messages.

    Raises:
        NumericalError: the solution is not finite.
    """
    weight = weight.double()
    if missing is None:
        return weight, weight.new_zeros(len(weight)) if centred else None
    mean, cross, moment = arrived.mean, missing.covariance, arrived.covariance
    if not centred:
        cross, moment = cross + missing.mean.outer(mean), moment + mean.outer(mean)
    scale = float(moment.trace()) / len(moment)
    if scale == 0:  # constant inputs: no map of them explains anything
        return weight, missing.mean if centred else None
    ridge = damping * scale * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    cholesky, failed = torch.linalg.cholesky_ex(moment + ridge)
    change = torch.cholesky_solve(cross.T, cholesky).T
    if failed or not bool(torch.isfinite(change).all()):
        raise NumericalError(
            f"the regression of {name} on its inputs is not finite: an activation overflows after the compressed blocks; set "
            "backbone.dtype to bfloat16 or float32, raise anchor.damping, or compress less"
        )
    return weight + change, missing.mean - change @ mean if centred else None
