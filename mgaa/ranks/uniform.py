"""Uniform baseline: every matrix of a sublayer keeps the same share of its parameters."""

from collections.abc import Sequence

from mgaa.budget import Ladder, lower_rungs, refill


def allocate(ladders: Sequence[Ladder], budget: int) -> list[int]:
    """The highest rungs within a common share of the parameters, then a refill inside the sublayer.

    The share is that of the budget, or less if the lowest rung of a matrix costs more than this, at the expense of the others.
    """
    share = budget / sum(ladder.matrix.parameters for ladder in ladders)
    rungs = [ladder.rung_within(share * ladder.matrix.parameters) for ladder in ladders]
    return refill(ladders, lower_rungs(ladders, rungs, budget), budget)
