"""What all rules of other methods share here: the budget, and the refill that MGAA's own ranks get.

The files beside this one are rules of methods of 2023 to 2026, each written anew at this project's protocol for `benchmarks/proof.py`: `prepare(model,
tokens)` measures once and returns what compresses the model at any compression. What the paper or the public code says and what is our
reading stands in the docstring of each; none of their code is here.

Others count parameters by shares of a matrix, or stop at the step that crosses the budget. Here the costs are exact, a rule has to
stay within the budget, and the rest goes to the matrices with the least kept energy (`mgaa.budget.refill`), so that methods are
compared at equal parameters. How much the refill had to spend is printed.
"""

import sys
from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel

from mgaa.budget import Ladder, parameter_budget, refill
from mgaa.errors import UsageError

Prepared = Callable[[float], PreTrainedModel]
"""Compresses a model that was measured before; the model itself stays dense."""


def filled(
    rule: str | None, ladders: Sequence[Ladder], ranks: Mapping[str, int | None], compression: float
) -> dict[str, int | None]:
    """The ranks on their ladders, refilled.

    Args:
        rule: its name, for what is printed; without one nothing is.
        ladders: of all matrices.
        ranks: by matrix; one between two rungs goes down, `None` is dense.
        compression: fraction of the parameters to remove.

    Raises:
        UsageError: the ranks cost more than the budget.
    """
    budget = parameter_budget([ladder.matrix for ladder in ladders], compression)
    rungs = [_rung(ladder, ranks[ladder.matrix.name]) for ladder in ladders]
    spent = _cost(ladders, rungs)
    if spent > budget:
        raise UsageError(
            f"{rule or 'the rule'} keeps {spent:,} parameters, more than the {budget:,} that compression {compression} allows: give a smaller compression"
        )
    rungs = refill(ladders, rungs, budget)
    left = budget - _cost(ladders, rungs)
    if rule is not None:
        counts = f"{spent:,} of {budget:,} by the rule, {budget - left - spent:,} by the refill, {left:,} left"
        print(f"{rule} at {compression}: {counts}", file=sys.stderr)
    return {ladder.matrix.name: ladder.ranks[rung] for ladder, rung in zip(ladders, rungs, strict=True)}


def _rung(ladder: Ladder, rank: int | None) -> int:
    """The highest rung that is no more than the rank; the lowest if none is."""
    if rank is None:
        return len(ladder.ranks) - 1
    return max(sum(each is not None and each <= rank for each in ladder.ranks) - 1, 0)


def _cost(ladders: Sequence[Ladder], rungs: Sequence[int]) -> int:
    return sum(ladder.costs[rung] for ladder, rung in zip(ladders, rungs, strict=True))
