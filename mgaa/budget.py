"""Every conversion between compression, parameters and rank, and all rounding.

`compression` is the fraction of parameters removed from the linears of the decoder blocks; `keep = 1 - compression`. A matrix of `m x n` at
rank `r` costs `r (m + n)` parameters, plus `m` where centring adds a bias that did not exist; a pruned matrix costs its share of the
channels. Low rank is allowed only below the cost `m n` of the matrix itself, so the ranks of a matrix form a *ladder*: the multiples of a
step up to break-even, and above them one last rung, *dense*, which has no error. An allocation is a rung per matrix; the budget is never
exceeded.

Refilling always lifts the matrix with the least kept energy whose next rung still fits. From the lowest rungs, this also leads to the
largest common energy: after every lift, each matrix stands on the lowest rung that reaches the energy already common to all (method: MGAA,
level 2, arXiv 2507.03294; the ladder and the greedy form are our choice).
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mgaa.errors import UsageError

FURTHER = (
    "smaller ranks.multiple, channels.multiple and channels.keep_least reach further, and so does ranks.objective=parameters where it "
    "is latency"
)
"""Remedy for a compression that is out of reach."""

AUTO_MULTIPLE = 8
"""Rank step that suits GPU kernels; used by `multiple="auto"` where it rounds a full-size matrix by less than about 6 %."""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix `W` (`m x n`, out x in) and its place in the model; `role` as in `mgaa.models.architecture_schema.Group`."""

    name: str
    local: str
    block: int
    sublayer: str
    m: int
    n: int
    bias: bool
    role: str = ""

    @property
    def parameters(self) -> int:
        """Parameters of the weight, without the bias."""
        return self.m * self.n

    def cost(self, rank: int | None, *, centred: bool) -> int:
        """Return the parameters at `rank`, including an added bias; `None` is dense."""
        if rank is None:
            return self.parameters
        return rank * (self.m + self.n) + (self.m if centred and not self.bias else 0)

    def largest_rank(self, *, centred: bool) -> int:
        """Return the largest rank that costs less than the dense matrix (0 if none does)."""
        return max(0, (self.parameters - 1 - self.cost(0, centred=centred)) // (self.m + self.n))


@dataclass(frozen=True)
class Ladder:
    """Possible outcomes of one matrix, cheapest first; the last is dense.

    Attributes:
        matrix: the matrix.
        spectrum: its energies, descending, float64; empty where its inputs were not measured, and dense is the only rung.
        ranks: ranks in ascending order, then `None` for dense.
        costs: parameters of each rung.
        energies: kept share of the energy of each rung, in [0, 1]; 1 for dense.
        plain: energies of the plain weight, where rules compare these (`ranks.spectrum`); `None` where they compare `spectrum`.
    """

    matrix: Matrix
    spectrum: Float[Tensor, " p"]
    ranks: tuple[int | None, ...]
    costs: tuple[int, ...]
    energies: tuple[float, ...]
    plain: Float[Tensor, " p"] | None = None

    @staticmethod
    def of(matrix: Matrix, spectrum: Float[Tensor, " p"], *, multiple: int, centred: bool) -> "Ladder":
        """Build the ladder of the ranks `multiple, 2 multiple, ...` below break-even, and dense."""
        ranks = range(multiple, matrix.largest_rank(centred=centred) + 1, multiple)
        parameters, added = matrix.m + matrix.n, matrix.cost(0, centred=centred)
        costs = [rank * parameters + added for rank in ranks]
        return Ladder(matrix, spectrum, (*ranks, None), (*costs, matrix.parameters), ()).weighed(1.0)

    @staticmethod
    def of_unreached(matrix: Matrix) -> "Ladder":
        """Build the ladder of a matrix whose inputs no token reached: dense only."""
        return Ladder(matrix, torch.empty(0, dtype=torch.float64), (None,), (matrix.parameters,), (1.0,))

    @property
    def is_measured(self) -> bool:
        """True if the inputs of the matrix were measured."""
        return len(self.spectrum) > 0

    def weighed(self, power: float) -> "Ladder":
        """Return this ladder with `energies` from `spectrum ** power`."""
        kept = kept_energy(self.spectrum, power).tolist() if self.is_measured else []
        energies = tuple(1.0 if rank is None else kept[rank] for rank in self.ranks)
        return replace(self, energies=energies)

    def as_compared(self) -> "Ladder":
        """Return this ladder with the energies that rules compare."""
        return self if self.plain is None else replace(self, spectrum=self.plain).weighed(1.0)

    def restricted(self, allowed: Callable[[int], bool]) -> "Ladder":
        """Return this ladder with only the allowed ranks; dense stays."""
        kept = [i for i, rank in enumerate(self.ranks) if rank is None or allowed(rank)]
        return replace(
            self,
            ranks=tuple(self.ranks[i] for i in kept),
            costs=tuple(self.costs[i] for i in kept),
            energies=tuple(self.energies[i] for i in kept),
        )

    @property
    def bias_parameters(self) -> int:
        """Parameters of the bias that low rank adds; 0 where dense is the only rung."""
        low = self.ranks[0]
        return 0 if low is None else self.costs[0] - low * (self.matrix.m + self.matrix.n)

    def rung_within(self, cost: float) -> int:
        """Return the highest rung that costs at most `cost`; the lowest if none does."""
        return max(sum(c <= cost for c in self.costs) - 1, 0)


@dataclass(frozen=True)
class Sublayers:
    """Sublayers of a model as input of a level-1 map, in model order.

    Attributes:
        names: `<block>.<sublayer>`.
        cosines: mean cosine of the residual stream before and after each sublayer.
        parameters: linear parameters.
        reach: largest ratio that the ranks allow.
        floors, caps: final bounds of the ratios (`mgaa.ratios`): the band around the compression, within reach.
    """

    names: tuple[str, ...]
    cosines: Float[Tensor, " s"]
    parameters: Float[Tensor, " s"]
    reach: Float[Tensor, " s"]
    floors: Float[Tensor, " s"]
    caps: Float[Tensor, " s"]


def rank_multiple(matrices: Sequence[Matrix], multiple: int | str) -> int:
    """Return the step between ranks: a number unchanged; `auto` is 8, or 1 where a matrix has fewer than 16 such steps.

    Raises:
        UsageError: it is neither a positive whole number nor `auto`.
    """
    if isinstance(multiple, int) and not isinstance(multiple, bool) and multiple >= 1:
        return multiple
    if multiple != "auto":
        raise UsageError(f"ranks.multiple is {multiple!r}, expected a positive whole number such as 8, or 'auto'")
    smallest = min(matrix.parameters // (matrix.m + matrix.n) for matrix in matrices)
    return AUTO_MULTIPLE if smallest >= 16 * AUTO_MULTIPLE else 1


def kept_energy(energies: Float[Tensor, " p"], power: float = 1.0) -> Float[Tensor, " p+1"]:
    """Return the kept share at ranks 0..p: cumulative `energies ** power` over their sum (1 everywhere if the sum is 0).

    `power=1` weighs by squared error; `power=0.5` sums singular values instead of their squares.
    """
    weights = energies.double() ** power
    total = weights.sum()
    if total == 0:
        return torch.ones(len(weights) + 1, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), (weights.cumsum(0) / total).clamp(max=1.0)])


def refill(ladders: Sequence[Ladder], rungs: Sequence[int], budget: int) -> list[int]:
    """Lift rungs, least energy first, while the next one fits into `budget` parameters in total.

    The remainder is smaller than the cheapest next step of any matrix that is not dense. Ties are broken by position.
    """
    rungs = list(rungs)
    left = budget - sum(ladder.costs[rung] for ladder, rung in zip(ladders, rungs, strict=True))
    queue = [(ladders[i].energies[rung], i) for i, rung in enumerate(rungs)]
    heapq.heapify(queue)
    while queue:
        _, i = heapq.heappop(queue)
        above = rungs[i] + 1
        if above == len(ladders[i].costs) or (step := ladders[i].costs[above] - ladders[i].costs[rungs[i]]) > left:
            continue  # the remainder only shrinks, so this step never fits again
        left -= step
        rungs[i] = above
        heapq.heappush(queue, (ladders[i].energies[above], i))
    return rungs


def lower_rungs(ladders: Sequence[Ladder], rungs: Sequence[int], budget: int) -> list[int]:
    """Lower rungs, the largest kept share of a matrix first, until they cost at most `budget` or are all at the lowest."""
    rungs = list(rungs)
    while any(rungs) and sum(ladder.costs[rung] for ladder, rung in zip(ladders, rungs, strict=True)) > budget:
        shares = [
            ladder.costs[rung] / ladder.matrix.parameters if rung else 0.0
            for ladder, rung in zip(ladders, rungs, strict=True)
        ]
        rungs[shares.index(max(shares))] -= 1
    return rungs


def parameter_budget(matrices: Sequence[Matrix], compression: float) -> int:
    """Return the number of parameters that may remain: `floor((1 - compression) * sum of m n)`.

    Raises:
        UsageError: the compression is not inside (0, 1).
    """
    if not 0 < compression < 1:
        raise UsageError(
            f"compression is {compression}, expected a number between 0 and 1 (both excluded): "
            "the fraction of linear parameters to remove, e.g. 0.2"
        )
    return int((1 - compression) * sum(matrix.parameters for matrix in matrices) + 1e-3)


def explain_unmeasured(ladders: Sequence[Ladder]) -> str:
    """Explain, where a compression is out of reach, that matrices without calibration tokens stay dense; empty where there are none."""
    count = sum(not ladder.is_measured for ladder in ladders)
    return (
        f"; {count} matrices stay dense, because no calibration token reached their experts (statistics.unreached): calibrate on more text"
        if count
        else ""
    )


def check_reachable(total: int, floor: int, compression: float, because: str = "") -> None:
    """Refuse a compression that leaves fewer of `total` linear parameters than the `floor` of the lowest ranks and widths.

    Args:
        because: text to append to the message.

    Raises:
        UsageError: the compression is out of reach; the message names the largest that can be reached.
    """
    if floor > int((1 - compression) * total + 1e-3):
        raise UsageError(
            f"compression {compression} is out of reach: at the lowest ranks {floor:,} of {total:,} linear parameters remain; "
            f"the largest reachable compression is {int(1e4 * (1 - floor / total)) / 1e4:.4f} ({FURTHER}){because}"
        )


def count_least_important(channels: int, keep_least: float) -> int:
    """Count the channels that are kept for being the least important: `int(keep_least n)`, as LoRAP's code rounds (arXiv 2404.09695)."""
    return int(keep_least * channels)


def kept_width(channels: int, ratio: float, keep_least: float, multiple: int) -> int:
    """Return how many of `channels` remain at a compression ratio.

    LoRAP prunes the channels from `int(keep_least n)` to `int((ratio + keep_least) n)` in ascending order of importance; the rounding is
    that of its code. Our addition: the remaining width is rounded down to a multiple, unless nothing is pruned.
    """
    pruned = int((ratio + keep_least) * channels) - count_least_important(channels, keep_least)
    kept = channels - pruned
    return kept - kept % multiple if pruned else channels


def fit_ratios(
    scores: Float[Tensor, " s"], parameters: Float[Tensor, " s"], compression: float, caps: Float[Tensor, " s"]
) -> Float[Tensor, " s"]:
    """Return ratios proportional to `scores`, at most `caps`, that remove exactly `compression` of all `parameters`.

    Solves `sum_s P_s min(cap_s, k * score_s) = compression * sum_s P_s` for `k`, exactly: sublayers reach their caps in descending order of
    `score / cap`, so each possible number of capped sublayers is tried in turn. Where only zero scores remain, they share the rest. Caps
    that cannot remove enough are a bug of the caller (`mgaa.ratios` checks them).
    """
    target = compression * parameters.sum()
    order = caps.argsort(stable=True)  # zero scores share equally, so that the smallest cap is reached first
    order = order[(scores / caps)[order].argsort(descending=True, stable=True)]
    ratios = caps.clone()
    for capped in range(len(scores)):
        rest = order[capped:]
        top = scores[rest].max()
        share = scores[rest] / top if top > 0 else torch.ones_like(scores[rest])
        left = target - (caps * parameters)[order[:capped]].sum()
        fitted = share * left / (share * parameters[rest]).sum()
        if bool((fitted <= caps[rest] * (1 + 1e-12)).all()):
            ratios[rest] = fitted
            break
    return torch.minimum(ratios, caps)


def bound_ratios(
    ratios: Float[Tensor, " s"],
    parameters: Float[Tensor, " s"],
    compression: float,
    floors: Float[Tensor, " s"],
    caps: Float[Tensor, " s"],
) -> Float[Tensor, " s"]:
    """Scale the ratios by one factor and clamp them to `[floors, caps]`, so that they still remove exactly `compression`.

    Solves `sum_s P_s clamp(k * ratio_s, floor_s, cap_s) = compression * sum_s P_s` for `k`: the left side is linear between the values of
    `k` at which a sublayer reaches a bound, so these values are searched and the last piece is interpolated. Requires floors that remove at
    most, and caps that remove at least, `compression`. Ratios within their bounds stay unchanged, to the bit.
    """
    if bool(((ratios >= floors) & (ratios <= caps)).all()):
        return ratios
    ratios = ratios.clamp(min=1e-9 * compression)  # a zero would stay at its floor whatever the factor
    target = compression * parameters.sum()

    def removed(factor: Tensor) -> Tensor:
        return (parameters * torch.clamp(factor * ratios, floors, caps)).sum()

    factors = torch.cat([floors / ratios, caps / ratios]).sort().values
    totals = torch.stack([removed(factor) for factor in factors])
    above = int((totals < target).sum().clamp(max=len(factors) - 1))
    below = max(above - 1, 0)
    rise = totals[above] - totals[below]
    part = (target - totals[below]) / rise if rise > 0 else torch.ones_like(rise)
    factor = factors[below] + part.clamp(0.0, 1.0) * (factors[above] - factors[below])
    return torch.clamp(factor * ratios, floors, caps)
