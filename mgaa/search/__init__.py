"""Ranks by search: the allocation of Bolaco (arXiv 2405.10616), which evaluates models on validation text, 50 of them by default.

    space      the search space: a kept share per type of matrix and group of blocks, spending the budget at every point
    objective  the value to minimise: perplexity, and the divergence from the dense model
    selection  the windows: those whose perplexity varies most between random allocations
    optimizer  the next point: a Gaussian process with expected improvement, or random points

    compress   all of it in one call, in memory

Every trial is a slice of the one decomposition that all allocations share, so it only costs its evaluation. A proposal of the Gaussian
process needs optuna (`pip install 'mgaa[search]'`).
"""

from mgaa.search.compress import Trial, compress_by_search_
from mgaa.search.objective import Score, objective, reference
from mgaa.search.optimizer import Found, propose
from mgaa.search.selection import most_telling
from mgaa.search.space import Space, Variable, space_of

__all__ = [
    "Found",
    "Score",
    "Space",
    "Trial",
    "Variable",
    "compress_by_search_",
    "most_telling",
    "objective",
    "propose",
    "reference",
    "space_of",
]
