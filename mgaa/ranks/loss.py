"""The least predicted loss: over all matrices of the model at once, parameters go where each saves most, whatever the ratios.

What a matrix loses at rank r is the energy beyond it, `sum_{i>r} e_i`: with the factorizer `kronecker` twice the rise of the loss to
second order, in nats per token, with the others the squared error of its output. Dense loses nothing. A spectrum falls, so the ranks of a
ladder are convex as they are; dense alone costs less than its energy would by ranks, and cuts off the upper ones: the lower convex hull
of (cost, loss) follows the rungs up to some *knee* and goes straight from there to dense. All steps along hulls in falling order of loss
saved per parameter are the optimum of the linear relaxation (multiple-choice knapsack: Sinha and Zoltners, 1979), so where they spend a
budget exactly, no other allocation loses less. The end is our choice: a step that does not fit ends the hull of its matrix, and what is
left goes to single rungs in the same order, until no next rung of any matrix fits.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mgaa.budget import Ladder, lower_rungs
from mgaa.errors import UsageError
from mgaa.methods import Traits

TRAITS = Traits(whole_model=True)


def allocate(ladders: Sequence[Ladder], budget: int, *, trust: float | None = None) -> list[int]:
    """Rungs of the least predicted loss within `budget` parameters; equal savings go by position.

    Args:
        ladders: of all matrices of the model.
        trust: no matrix's kept share of its parameters departs by more from that of all, `budget / parameters`; `None`: no bound. A matrix
            without a rung so near keeps its nearest one; where the least that is allowed exceeds the budget, the bounds give way below.

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
    """Cost and loss of the rungs that a matrix may take, in rising order of cost.

    Attributes:
        knee: below it a step leads to the next rung, from it on to the last.
    """

    costs: Sequence[int]
    losses: Sequence[float]
    knee: int

    @staticmethod
    def of(ladder: Ladder, low: int, high: int) -> "_Curve":
        """From rung `low` to `high`; the knee is where the straight line to `high` is the flattest, which leaves no rung below it."""
        rising = ladder.spectrum.double().flip(0).cumsum(0)  # the smallest first, so that none is lost
        tails = [*rising.flip(0).tolist(), 0.0]
        losses = [0.0 if rank is None else tails[rank] for rank in ladder.ranks[low : high + 1]]
        costs, last = ladder.costs[low : high + 1], high - low
        slopes = [((losses[k] - losses[last]) / (costs[last] - costs[k]), -k) for k in range(last)]
        return _Curve(costs, losses, -min(slopes)[1] if slopes else 0)

    def without_hull(self) -> "_Curve":
        """The same with every step to the next rung."""
        return replace(self, knee=len(self.costs))

    def above(self, rung: int) -> int:
        """Where the step from a rung leads."""
        return rung + 1 if rung < self.knee else len(self.costs) - 1

    def saving(self, rung: int) -> float:
        """Loss that the step from a rung saves per parameter."""
        above = self.above(rung)
        return (self.losses[rung] - self.losses[above]) / (self.costs[above] - self.costs[rung])


def _bounds(ladder: Ladder, share: float, trust: float | None) -> tuple[int, int]:
    """The lowest and the highest rung that a matrix may take around a share of its parameters."""
    if trust is None:
        return 0, len(ladder.costs) - 1
    size = ladder.matrix.parameters
    distances = [abs(cost - share * size) for cost in ladder.costs]
    within = trust * size + 1  # budgets are rounded down to a parameter
    inside = [k for k, distance in enumerate(distances) if distance <= within] or [distances.index(min(distances))]
    return inside[0], inside[-1]


def _climb(curves: Sequence[_Curve], rungs: Sequence[int], budget: int) -> list[int]:
    """Rungs after all steps that fit, the largest saving first; a matrix whose step does not fit stays where it is."""
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
