"""The two levels one after the other: once for real, and once before anything is measured.

What an allocation is refused for (an option out of range, a compression out of reach, a step of the ranks that a matrix cannot take, a
file for another model) lies in its parameters and in the shapes of the model, not in the data. So it is rehearsed on made-up data: equal
cosines and flat spectra. This costs milliseconds where calibration costs minutes, needs nothing of a method, and refuses nothing that the
data could have made possible.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mgaa.budget import Ladder, Matrix
from mgaa.methods import method
from mgaa.ranks import Rank, allocate_ranks, by_sublayer, ladders_of, reach_of
from mgaa.ratios import allocate_ratios
from mgaa.statistics import Accumulator

Chosen = tuple[str, Mapping[str, Any]]
"""A method and its options, those that all methods of its section share among them (`band`)."""


def allocate(
    ladders: Sequence[Ladder], cosines: Mapping[str, float], compression: float, ratios: Chosen, ranks: Chosen
) -> tuple[dict[str, float], list[Rank]]:
    """Ratios by sublayer, and the ranks of all matrices under them.

    Args:
        ladders: of all matrices, in model order.
        cosines: mean cosine by sublayer.
        compression: fraction of all linear parameters to remove.
        ratios, ranks: the map of level 1 and the rule of level 2.

    Raises:
        UsageError: an option is unknown or out of range, or the compression is out of reach.
    """
    sizes = {name: sum(ladder.matrix.parameters for ladder in group) for name, group in by_sublayer(ladders).items()}
    given = allocate_ratios(ratios[0], cosines, sizes, reach_of(ladders), compression=compression, **ratios[1])
    return given, allocate_ranks(ranks[0], ladders, given, compression=compression, **ranks[1])


def rehearse(
    matrices: Sequence[Matrix],
    compression: float,
    *,
    factors: Chosen,
    ratios: Chosen,
    ranks: Chosen,
    multiple: int | str = "auto",
) -> None:
    """Refuse what `allocate` would refuse after the calibration; arguments as there.

    Raises:
        UsageError: as `allocate`, and for options of the factorizer.
        InputError: a file that a method reads is missing or damaged.
    """
    one = torch.ones(1, dtype=torch.float64)
    energies = {matrix.name: one.expand(min(matrix.m, matrix.n)) for matrix in matrices}
    ladders = ladders_of(matrices, energies, centred=adds_biases(factors), multiple=multiple)
    allocate(ladders, dict.fromkeys(by_sublayer(ladders), 0.5), compression, ratios, ranks)


def adds_biases(factors: Chosen) -> bool:
    """Whether the metric of a factorizer is centred, asked of it on two made-up tokens.

    Raises:
        UsageError: the factorizer or an option is unknown, or an option is out of range.
    """
    made_up = Accumulator("a made-up input", groups=1, sequences=1)
    made_up.update(0, torch.eye(2))
    return method("factors", *factors)(made_up.finish(), **factors[1]).mean is not None
