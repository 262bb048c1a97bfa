"""Level 2 of MGAA: ranks of the matrices inside a sublayer, under the budget that level 1 gave it (arXiv 2507.03294).

Each file holds one rule `allocate(ladders, budget, *, options)` that puts every matrix of one sublayer on a rung of its ladder. The
parameters that the rules leave over are then spent on the whole model by the same refill for every rule, so that methods are
compared at equal parameters: what is left is smaller than the cheapest next step of any matrix. A rule that has to see the whole
model before (`file`) has a second function, `check(ladders, compression, *, options)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mgaa.budget import Ladder, Matrix, check_reachable, parameter_budget, rank_multiple, refill
from mgaa.errors import UsageError
from mgaa.methods import check, method


@dataclass(frozen=True)
class Rank:
    """The outcome for one matrix: its rank (`None` is dense), its parameters, and the share of energy that it keeps."""

    matrix: Matrix
    rank: int | None
    parameters: int
    energy: float


def ladders_of(
    matrices: Sequence[Matrix],
    energies: Mapping[str, Float[Tensor, " p"]],
    *,
    centred: bool,
    multiple: int | str = "auto",
) -> list[Ladder]:
    """The ladder of every matrix; `energies` by matrix name, `centred` if the factors add biases.

    Raises:
        UsageError: the step between ranks leaves a matrix without any low rank.
    """
    step = rank_multiple(matrices, multiple)
    ladders = [Ladder.of(matrix, energies[matrix.name], multiple=step, centred=centred) for matrix in matrices]
    for ladder in ladders:
        largest = ladder.matrix.largest_rank(centred=centred)
        if len(ladder.ranks) == 1 and largest > 0:  # a matrix that no rank makes smaller stays dense
            raise UsageError(
                f"ranks.multiple is {step}, but {ladder.matrix.name} ({ladder.matrix.m} x {ladder.matrix.n}) "
                f"breaks even above rank {largest}: set ranks.multiple to at most {largest}"
            )
    return ladders


def by_sublayer(ladders: Sequence[Ladder]) -> dict[str, list[Ladder]]:
    """Group ladders by sublayer, in order."""
    return {name: list(group) for name, group in groupby(ladders, key=lambda ladder: ladder.matrix.sublayer)}


def reach_of(ladders: Sequence[Ladder]) -> dict[str, float]:
    """The largest compression ratio of every sublayer: all its matrices on their lowest rungs."""
    return {
        name: 1 - sum(ladder.costs[0] for ladder in group) / sum(ladder.matrix.parameters for ladder in group)
        for name, group in by_sublayer(ladders).items()
    }


def allocate_ranks(
    name: str, ladders: Sequence[Ladder], ratios: Mapping[str, float], *, compression: float, **options: Any
) -> list[Rank]:
    """The rank of every matrix, in order; the parameter budget is never exceeded.

    Args:
        name, options: the rule and its keyword arguments.
        ladders: of all matrices, in model order.
        ratios: compression ratio by sublayer.
        compression: fraction of all linear parameters to remove.

    Raises:
        UsageError: unknown rule or option, a compression or ratio that is out of reach, or what the rule itself refuses.
    """
    rule = method("ranks", name, options)
    check_reachable(ladders, compression)
    check("ranks", name, ladders, compression, **options)
    budget = parameter_budget([ladder.matrix for ladder in ladders], compression)
    rungs: list[int] = []
    for sublayer, group in by_sublayer(ladders).items():
        kept = int((1 - ratios[sublayer]) * sum(ladder.matrix.parameters for ladder in group) + 1e-6)
        if kept < (floor := sum(ladder.costs[0] for ladder in group)):
            raise UsageError(
                f"the ratio {ratios[sublayer]} of sublayer {sublayer} leaves {kept:,} parameters, but its lowest ranks take {floor:,}: "
                "compute the ratios with the same ranks.multiple and factors.method"
            )
        rungs += rule(group, kept, **options)
    if (kept := sum(ladder.costs[rung] for ladder, rung in zip(ladders, rungs, strict=True))) > budget:
        raise UsageError(
            f"the ratios keep {kept:,} parameters, more than the {budget:,} that compression {compression} allows: "
            "compute the ratios for this compression"
        )
    rungs = refill(ladders, rungs, budget)
    return [
        Rank(ladder.matrix, ladder.ranks[rung], ladder.costs[rung], ladder.energies[rung])
        for ladder, rung in zip(ladders, rungs, strict=True)
    ]
