"""LoRAP's split of attention: value and output together keep three times as many parameters as query and key (arXiv 2404.09695).

If q, k, v and o are square and equal, the roundings are those of LoRAP's code, with `a` the split, `h` the width and `keep` the kept
share: `k_att = int(keep h/2)` and `k_vo = int(2 a k_att/(1+a))`. If `k_vo >= h/2`, v and o stay dense and `k_qk = int(keep h) - int(h/2)`;
else `k_qk = int(2 k_att/(1+a))`. These ranks are final (`verbatim`): nothing is refilled, and parameters left over are reported.

Our generalisation to grouped-query attention and other shapes (and to splits below 1): the pair (v, o) gets `a/(1+a)` of the kept
parameters and (q, k) the rest; both matrices of a pair keep the same fraction, at most all, and what a pair cannot use goes to the other.
Biases that the factorizer adds are deducted first. A sublayer without such pairs (an FFN that is not pruned) keeps the same share of every
matrix.
"""

import math
from collections.abc import Sequence

from mgaa.budget import Ladder, lower_rungs
from mgaa.errors import UsageError
from mgaa.methods import Traits
from mgaa.ranks import uniform

TRAITS = Traits(verbatim=True)

PAIRS = {"v": "vo", "o": "vo", "q": "qk", "k": "qk"}


def allocate(ladders: Sequence[Ladder], budget: int, *, split: float = 3.0) -> list[int]:
    """Rungs of the matrices of one sublayer within `budget` parameters.

    Args:
        split: ratio of the kept parameters of v and o to those of q and k; 1 keeps equally many.

    Raises:
        UsageError: the split is not positive.
    """
    if not 0 < split < math.inf:
        raise UsageError(
            f"ranks.split is {split}, expected a positive number such as 3.0: kept parameters of v and o over q and k"
        )
    if sorted(ladder.matrix.role for ladder in ladders) != sorted(PAIRS):
        return uniform.allocate(ladders, budget)
    sides = {side for ladder in ladders for side in (ladder.matrix.m, ladder.matrix.n)}
    shares = _square if len(sides) == 1 and split >= 1 else _of_any_shape
    kept = shares(ladders, budget, split)
    rungs = [
        ladder.rung_within(kept[PAIRS[ladder.matrix.role]] * ladder.matrix.parameters + ladder.bias_parameters + 1e-6)
        for ladder in ladders
    ]
    return lower_rungs(ladders, rungs, budget)


def _square(ladders: Sequence[Ladder], budget: int, split: float) -> dict[str, float]:
    """The kept fraction of each pair, with the roundings of LoRAP's code."""
    width, biases = ladders[0].matrix.m, _biases(ladders)
    k_att = (budget - sum(biases.values())) // (8 * width)  # int(keep h/2)
    k_vo = int(2 * split * k_att / (1 + split))
    if k_vo >= width / 2:
        k_qk = (budget - biases["qk"]) // (4 * width) - width // 2  # int(keep h) - int(h/2)
        return {"vo": 1.0, "qk": min(1.0, 2 * k_qk / width)}
    return {"vo": 2 * k_vo / width, "qk": min(1.0, 2 * int(2 * k_att / (1 + split)) / width)}


def _of_any_shape(ladders: Sequence[Ladder], budget: int, split: float) -> dict[str, float]:
    """The kept fraction of each pair, by parameters."""
    biases = _biases(ladders)
    whole = dict.fromkeys(biases, 0)
    for ladder in ladders:
        whole[PAIRS[ladder.matrix.role]] += ladder.matrix.parameters
    shares = {"vo": split / (1 + split), "qk": 1 / (1 + split)}
    left = budget - sum(biases.values())
    kept = {pair: share * left / whole[pair] for pair, share in shares.items()}
    for pair, other in (("vo", "qk"), ("qk", "vo")):
        if kept[pair] >= 1:
            return {pair: 1.0, other: min(1.0, (budget - whole[pair] - biases[other]) / whole[other])}
    return kept


def _biases(ladders: Sequence[Ladder]) -> dict[str, int]:
    """Parameters of the biases that low rank adds to each pair."""
    added = {"vo": 0, "qk": 0}
    for ladder in ladders:
        added[PAIRS[ladder.matrix.role]] += ladder.bias_parameters
    return added
