"""ASVD (Yuan et al. 2023, arXiv 2312.05821): truncate more where the calibration perplexity suffers less from it.

From the paper and its code (https://github.com/hahnyuan/ASVD4LLM, `sensitivity.py`, `binary_search.py`): weights scaled by
`(mean_t |x_j|)^0.5` before the SVD; the perplexity of a few calibration sequences with one matrix at a time truncated to a share of its
parameters; all pairs (matrix, share) in falling order of that perplexity; of every suffix of this list each matrix takes the least
share that occurs in it, or stays dense; a binary search finds the suffix that meets the budget.

Our reading: the shares 0.1 to 0.9 of the paper (the code tries 0.4 to 0.9 for weights and could not reach a compression of 0.6); the
longest dense model within the budget, where the code may stop one pair off; the linears of the decoder blocks alone, without `lm_head`; an
exact SVD for their randomised one; the calibration tokens of this project, the first 32 sequences as in the code (there of 2048 tokens).
"""

import math
from collections.abc import Mapping, Sequence

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.peers.filling import Prepared, filled
from mgaa.budget import Ladder, parameter_budget
from mgaa.checkpoints.save import apply_factors, twin_of
from mgaa.decomposed import decompose_model
from mgaa.errors import NumericalError
from mgaa.evaluation.perplexity import perplexity
from mgaa.factors import factorize_linear
from mgaa.levels import Target
from mgaa.models.architectures import matrices_of
from mgaa.statistics.calibration import CalibrationSettings

SHARES = tuple(share / 10 for share in range(1, 10))
Sensitivities = Mapping[str, Mapping[float, float]]
"""Mean loss of the calibration sequences with one matrix alone truncated, by matrix and share."""


def prepare(model: PreTrainedModel, tokens: Int[Tensor, "s t"], *, alpha: float = 0.5, sequences: int = 32) -> Prepared:
    """Decompose the model and measure the sensitivity of every matrix."""
    matrices = matrices_of(model)
    shared = decompose_model(model, tokens, matrices, Target(0.5), CalibrationSettings(), ("asvd", {"alpha": alpha}))

    def truncated(ranks: Mapping[str, int | None]) -> PreTrainedModel:
        twin = twin_of(model)
        kept = {name: rank for name, rank in ranks.items() if rank is not None}
        apply_factors(
            twin, {name: factorize_linear(model, name, shared.spectra[name], rank) for name, rank in kept.items()}
        )
        return twin

    def loss(ladder: Ladder, share: float) -> float:
        changed = truncated({ladder.matrix.name: rank_of(ladder, share)})
        try:
            return perplexity(changed, tokens[:sequences].flatten(), length=tokens.shape[1]).nll
        except NumericalError:
            return math.inf

    found = {ladder.matrix.name: {share: loss(ladder, share) for share in SHARES} for ladder in shared.ladders}
    return lambda compression: truncated(
        filled("asvd", shared.ladders, searched(shared.ladders, found, compression), compression)
    )


def rank_of(ladder: Ladder, share: float) -> int | None:
    """Largest rank within a share of the parameters."""
    return ladder.ranks[ladder.rung_within(share * ladder.matrix.parameters)]


def searched(ladders: Sequence[Ladder], sensitivities: Sensitivities, compression: float) -> dict[str, int | None]:
    """Ranks of the shortest suffix of the list whose parameters are within the budget."""
    pairs = [(loss, name, share) for name, losses in sensitivities.items() for share, loss in losses.items()]
    ordered = sorted(pairs, key=lambda pair: -pair[0])
    budget = parameter_budget([ladder.matrix for ladder in ladders], compression)
    costs = {ladder.matrix.name: ladder for ladder in ladders}

    def ranks(start: int) -> dict[str, int | None]:
        least: dict[str, float] = {}
        for _, name, share in ordered[start:]:
            least[name] = min(share, least.get(name, 1.0))
        return {name: rank_of(ladder, least[name]) if name in least else None for name, ladder in costs.items()}

    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high + 1) // 2
        spent = sum(costs[name].matrix.cost(rank, centred=False) for name, rank in ranks(middle).items())
        low, high = (middle, high) if spent <= budget else (low, middle - 1)
    return ranks(low)
