"""Common part of all rules of other methods: the budget, and the refill that MGAA's own ranks get.

The files next to this one are rules of methods of 2023 to 2026, each reimplemented under this project's protocol for
`benchmarks/proof.py`: `prepare(model, tokens)` measures once and returns a function that compresses the model at any compression. The
docstring of each says what is from the paper or the public code and what is our reading; none of their code is here.

Other methods count parameters as shares of a matrix, or stop at the step that crosses the budget. Here the costs are exact, a rule has to
stay within the budget, and the rest goes to the matrices with the least kept energy (`mgaa.budget.refill`), so that methods are
compared at equal parameters. The amount that the refill spent is printed.
"""

import sys
from collections.abc import Callable, Mapping, Sequence

from transformers import PreTrainedModel

from mgaa.budget import Ladder, parameter_budget, refill
from mgaa.errors import UsageError

Prepared = Callable[[float], PreTrainedModel]
"""A function that compresses a model measured before; the model itself stays dense."""


def filled(
    rule: str | None, ladders: Sequence[Ladder], ranks: Mapping[str, int | None], compression: float
) -> dict[str, int | None]:
    """Ranks on their ladders, refilled.

    Args:
        rule: name of the rule for the printed line; None prints nothing.
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
    """Highest rung that is at most the rank; the lowest if there is none."""
    if rank is None:
        return len(ladder.ranks) - 1
    return max(sum(each is not None and each <= rank for each in ladder.ranks) - 1, 0)


def _cost(ladders: Sequence[Ladder], rungs: Sequence[int]) -> int:
    return sum(ladder.costs[rung] for ladder, rung in zip(ladders, rungs, strict=True))
