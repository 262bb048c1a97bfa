"""Least predicted loss: over all matrices of the model, parameters go where each saves most, independent of the ratios.

At rank r a matrix loses the energy beyond it, `sum_{i>r} e_i`: with the factorizer `kronecker` twice the second-order increase of the loss
in nats per token, with all others the squared error of its output. A dense matrix loses nothing. Spectra decrease, so the ranks of a ladder
are convex in (cost, loss). The dense rung costs less than low rank of the same energy would and cuts off the upper ranks: the lower convex
hull follows the rungs up to a *knee* and then leads straight to dense. Taking all steps along the hulls in decreasing order of loss saved
per parameter solves the linear relaxation (multiple-choice knapsack: Sinha and Zoltners, 1979); if they spend the budget exactly, no
allocation loses less. The remainder is our choice: a step that does not fit ends the hull of its matrix, and the rest of the budget goes to
single rungs in the same order, until no next rung of any matrix fits.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mgaa.budget import Ladder, lower_rungs
from mgaa.errors import UsageError
from mgaa.methods import Traits

TRAITS = Traits(whole_model=True)


def allocate(ladders: Sequence[Ladder], budget: int, *, trust: float | None = None) -> list[int]:
    """Rungs of the least predicted loss within `budget` parameters; ties are broken by position.

    Args:
        ladders: of all matrices of the model.
        trust: largest deviation of a matrix's kept share from that of the model, `budget / parameters`; `None`: no bound. A matrix without
            a rung within it takes the closest one; if the lowest allowed rungs exceed the budget, lower ones are allowed.

    Raises:
        UsageError: the trust is not in (0, 1].
    """
    if trust is not None and not 0 < trust <= 1:
        raise UsageError(
            f"ranks.trust is {trust}, expected a number above 0 and at most 1 such as 0.2: how far a matrix's kept share of its parameters "
            "may depart from that of all; null: any"
        )
    share = budget / sum(ladder.matrix.parameters for ladder in ladders)
    bounds = [_bounds(ladder, share, trust) for ladder in ladders]
    lowest = lower_rungs(ladders, [low for low, _ in bounds], budget)
    curves = [_Curve.of(ladder, low, high) for ladder, low, (_, high) in zip(ladders, lowest, bounds, strict=True)]
    along = _climb(curves, [0] * len(curves), budget)
    rungs = _climb([curve.without_hull() for curve in curves], along, budget)
    return [low + rung for low, rung in zip(lowest, rungs, strict=True)]


@dataclass(frozen=True)
class _Curve:
    """Costs and losses of the rungs allowed for a matrix, in increasing order of cost.

    Attributes:
        knee: below it a step leads to the next rung, from it to the last.
    """

    costs: Sequence[int]
    losses: Sequence[float]
    knee: int

    @staticmethod
    def of(ladder: Ladder, low: int, high: int) -> "_Curve":
        """The curve from rung `low` to `high`; at the knee the line to `high` is flattest, so that no rung lies below it."""
        rising = ladder.spectrum.double().flip(0).cumsum(0)  # smallest first, so that none is lost to rounding
        tails = [*rising.flip(0).tolist(), 0.0]
        losses = [0.0 if rank is None else tails[rank] for rank in ladder.ranks[low : high + 1]]
        costs, last = ladder.costs[low : high + 1], high - low
        slopes = [((losses[k] - losses[last]) / (costs[last] - costs[k]), -k) for k in range(last)]
        return _Curve(costs, losses, -min(slopes)[1] if slopes else 0)

    def without_hull(self) -> "_Curve":
        """The curve with every step to the next rung."""
        return replace(self, knee=len(self.costs))

    def above(self, rung: int) -> int:
        """The rung after a step."""
        return rung + 1 if rung < self.knee else len(self.costs) - 1

    def saving(self, rung: int) -> float:
        """Loss saved per parameter by the step from a rung."""
        above = self.above(rung)
        return (self.losses[rung] - self.losses[above]) / (self.costs[above] - self.costs[rung])


def _bounds(ladder: Ladder, share: float, trust: float | None) -> tuple[int, int]:
    """The lowest and highest rungs allowed around a share of a matrix's parameters."""
    if trust is None:
        return 0, len(ladder.costs) - 1
    size = ladder.matrix.parameters
    distances = [abs(cost - share * size) for cost in ladder.costs]
    within = trust * size + 1  # budgets are rounded down to a parameter
    inside = [k for k, distance in enumerate(distances) if distance <= within] or [distances.index(min(distances))]
    return inside[0], inside[-1]


def _climb(curves: Sequence[_Curve], rungs: Sequence[int], budget: int) -> list[int]:
    """Take all steps that fit, largest saving first; a matrix whose step does not fit stays on its rung."""
    rungs = list(rungs)
    left = budget - sum(curve.costs[rung] for curve, rung in zip(curves, rungs, strict=True))
    queue = [
        (-curve.saving(k), i)
        for i, (curve, k) in enumerate(zip(curves, rungs, strict=True))
        if k + 1 < len(curve.costs)
    ]
    heapq.heapify(queue)
    while queue:
        _, i = heapq.heappop(queue)
        curve, above = curves[i], curves[i].above(rungs[i])
        if (step := curve.costs[above] - curve.costs[rungs[i]]) > left:
            continue  # what is left only shrinks, so this step never fits again
        left -= step
        rungs[i] = above
        if above + 1 < len(curve.costs):
            heapq.heappush(queue, (-curve.saving(above), i))
    return rungs
