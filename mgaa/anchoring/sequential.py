"""Sequential compression: each block is calibrated on the outputs of the compressed blocks before it (LoRAP, arXiv 2404.09695).

So errors of earlier blocks enter the statistics of later ones, which can compensate part of them. The price: nothing is shared between
compressions or factorizers, and an allocation cannot consider the whole model. Ratios come from the cosines of the dense model. The budget
of a block is what its ratios and those of all blocks before it allow, minus what these have spent: so the budget of the model is never
exceeded, and parameters that one block leaves are available to the next, unless its rule does not refill (our choice; the paper uses one
ratio for all and leaves the rest unspent).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.allocation.channels import ChannelScores, score
from mgaa.budget import Matrix, parameter_budget, rank_multiple
from mgaa.checkpoints.save import apply_channels, apply_factors
from mgaa.decomposition.linalg import Spectrum, plain_energies
from mgaa.factors import decompose_block, factorize_linear
from mgaa.levels import Chosen, Target
from mgaa.models.lowrank import Factors
from mgaa.ranks import Rank, allocate_within, ladders_of
from mgaa.statistics.statistics import BlockStatistics


@dataclass(frozen=True, eq=False)
class CompressedBlock:
    """Outcome of the compression of one block.

    Attributes:
        ranks: the outcome for each of its matrices.
        factors: of the matrices that have a rank, by name.
        kept: the remaining channels of its FFN where that is pruned.
        spectra: of the decomposed matrices, by their name inside the block.
        scores: channel scores of its FFN where that is pruned, by sublayer.
    """

    ranks: list[Rank]
    factors: dict[str, Factors]
    kept: Int[Tensor, " k"] | None
    spectra: dict[str, Spectrum]
    scores: dict[str, ChannelScores]


def allowance(matrices: Sequence[Matrix], ratios: Mapping[str, float], compression: float, index: int) -> int:
    """Return the linear parameters that the blocks up to `index` may have in total under their ratios."""
    until = [matrix for matrix in matrices if matrix.block <= index]
    asked = sum((1 - ratios[matrix.sublayer]) * matrix.parameters for matrix in until)
    return min(int(asked + 1e-3), parameter_budget(matrices, compression))


def compress_block(
    model: PreTrainedModel,
    index: int,
    statistics: BlockStatistics,
    matrices: Sequence[Matrix],
    ratios: Mapping[str, float],
    target: Target,
    factors: Chosen,
    ranks: Chosen,
    *,
    spent: int,
) -> CompressedBlock:
    """Decompose, allocate and factorize one block; the model stays unchanged.

    Args:
        statistics: of the block, on the outputs of the blocks before it.
        matrices: of the whole model.
        ratios: by sublayer, of the whole model.
        target: of the whole model.
        factors, ranks: the factorizer and the rule of level 2.
        spent: linear parameters of the blocks before it.

    Raises:
        UsageError, InputError, NumericalError: as in the single stages.
    """
    low, pruned = target.parts([matrix for matrix in matrices if matrix.block == index])
    weights = {m.local: model.get_submodule(m.name).weight.detach() for m in matrices if m.block == index}
    name, options = factors
    reached = [m for m in low if m.local in statistics.shared]
    spectra = decompose_block({m.local: weights[m.local] for m in reached}, statistics, name, **options)
    scores = {channels: score(channels, weights, statistics) for channels in pruned}
    energies = {m.name: spectra[m.local].energies.cpu() for m in reached}
    plain = {m.name: plain_energies(weights[m.local]).cpu() for m in reached if target.spectrum == "plain"}
    centred = any(spectrum.mean is not None for spectrum in spectra.values())
    multiple = rank_multiple(target.parts(matrices)[0], target.multiple)
    budget = allowance(matrices, ratios, target.compression, index) - spent
    rule, options_of_rule = ranks
    ladders = ladders_of(low, energies, centred=centred, multiple=multiple, latency=target.latency, plain=plain)
    outcome = allocate_within(
        rule, ladders, ratios, budget, compression=target.compression, pruned=scores, **options_of_rule
    )
    widths = {rank.matrix.sublayer: rank.width for rank in outcome if rank.width is not None}
    kept = [s.kept_channels(widths[c.sublayer], c.pruning.keep_least) for c, s in scores.items()]
    made = {
        r.matrix.name: factorize_linear(model, r.matrix.name, spectra[r.matrix.local], r.rank)
        for r in outcome
        if r.rank is not None
    }
    by_sublayer = {channels.sublayer: s for channels, s in scores.items()}
    return CompressedBlock(outcome, made, next(iter(kept), None), spectra, by_sublayer)


def put_(model: PreTrainedModel, index: int, block: CompressedBlock) -> None:
    """Compress a block in place, to the outcome of `compress_block`."""
    apply_factors(model, block.factors)
    if block.kept is not None:
        apply_channels(model, {index: block.kept})
