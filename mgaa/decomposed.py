"""What all allocations of a model share, by one calibration and one decomposition: any ranks are then slices, or a pass of both models.

Statistics live for one block at a time, and a dense weight in float64 for one matrix at a time; the spectra of all blocks are kept. With
gradients blocks are decomposed from the last to the first, and the hidden states in front of the blocks to come are still there.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.allocation.channels import Channels, ChannelScores, score
from mgaa.anchoring.anchoring import anchor_blocks
from mgaa.anchoring.fitting import Anchoring
from mgaa.anchoring.refinement import Refinement
from mgaa.blocks.memory import release_memory
from mgaa.budget import Ladder, Matrix
from mgaa.checkpoints.save import apply_channels, apply_factors
from mgaa.decomposition.linalg import Spectrum
from mgaa.factors import decompose_block, factorize_linear
from mgaa.inputs.prompts import Prompts
from mgaa.levels import Chosen, Target, allocate
from mgaa.methods import method_traits
from mgaa.models.architectures import DECODER
from mgaa.ranks import Rank, ladders_of
from mgaa.statistics.calibration import CalibrationSettings, stream_statistics
from mgaa.statistics.gradients import differentiate_model


@dataclass(frozen=True, eq=False)
class DecomposedModel:
    """What all allocations of a model share.

    Attributes:
        spectra: of every matrix that is factorized, by name.
        ladders: theirs, in model order.
        scores: of the FFNs that are pruned.
        cosines: by sublayer.
        gradients: second moments of the output gradients, by block, by linear; empty where the factorizer needs none.
    """

    spectra: dict[str, Spectrum]
    ladders: list[Ladder]
    scores: dict[Channels, ChannelScores]
    cosines: dict[str, float]
    gradients: dict[int, dict[str, Tensor]]

    def allocate(self, target: Target, ratios: Chosen, ranks: Chosen) -> tuple[dict[str, float], list[Rank]]:
        """Ratios by sublayer and the outcome for every matrix; of the target, the compression is free (`mgaa.levels.allocate`)."""
        return allocate(self.ladders, self.cosines, target, ratios, ranks, self.scores)

    def put_(self, model: PreTrainedModel, outcome: Sequence[Rank], *, last: bool = False) -> None:
        """Put the factors of these ranks, and the channels of these widths, into the model, or into a twin of it.

        Args:
            model: what was decomposed, or a twin of it.
            outcome: for every matrix.
            last: whether nothing is asked of the spectra afterwards; each is then forgotten as soon as its factors are made.
        """
        ranked = {r.matrix.name: r.rank for r in outcome if r.rank is not None}
        found = self.spectra if last else dict(self.spectra)
        for name in found.keys() - ranked.keys():
            del found[name]
        # the model changes when all factors are there, so that one out of range leaves it as it was
        apply_factors(model, {n: factorize_linear(model, n, found.pop(n), rank) for n, rank in ranked.items()})
        widths = {r.matrix.sublayer: r.width for r in outcome if r.width is not None}
        kept = {
            c.matrices[0].block: s.kept_channels(widths[c.sublayer], c.pruning.keep_least)
            for c, s in self.scores.items()
        }
        apply_channels(model, kept)

    def anchor_(
        self,
        model: PreTrainedModel,
        outcome: Sequence[Rank],
        dense: PreTrainedModel,
        tokens: Prompts | Int[Tensor, "s t"],
        measuring: CalibrationSettings,
        factors: Chosen,
        anchoring: Anchoring,
        refinement: Refinement | None,
    ) -> None:
        """The same with factors that are fitted to the dense model behind compressed blocks (`mgaa.anchoring`).

        Args:
            model, outcome: as in `put_`; the model may be the dense one itself, and changes when all factors are there.
            dense: what was decomposed.
            tokens, measuring, factors, anchoring, refinement: as in `mgaa.anchoring.anchoring.anchor_blocks`.
        """
        matrices, ranks = [each.matrix for each in outcome], {each.matrix.name: each.rank for each in outcome}
        how = (factors, self.gradients, measuring, anchoring, refinement)
        blocks = [*anchor_blocks(dense, tokens, matrices, ranks, *how)]
        for block in blocks:
            block.put_(model)


def decompose_model(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    matrices: Sequence[Matrix],
    target: Target,
    measuring: CalibrationSettings,
    factors: Chosen,
    parts: Sequence[str] = DECODER,
) -> DecomposedModel:
    """Measure every block on dense inputs and decompose its matrices; nothing of the model changes."""
    name, options = factors
    low, pruned = target.parts(matrices)
    cosines: dict[int, dict[str, float]] = {}
    found: dict[str, Spectrum] = {}
    scores: dict[Channels, ChannelScores] = {}
    gradients: dict[int, dict[str, Tensor]] = {}
    if method_traits("factors", name).gradients:
        blocks = differentiate_model(model, tokens, measuring, parts=parts)
    else:
        blocks = enumerate(stream_statistics(model, tokens, **asdict(measuring), parts=parts))
    for index, block in blocks:
        weights = {m.local: model.get_submodule(m.name).weight.detach() for m in matrices if m.block == index}
        inside = {m.local: m.name for m in low if m.block == index and m.local in block.shared}
        release_memory()
        here = decompose_block({local: weights[local] for local in inside}, block, name, **options)
        found |= {inside[local]: spectrum for local, spectrum in here.items()}
        scores |= {each: score(each, weights, block) for each in pruned if each.matrices[0].block == index}
        cosines[index] = block.cosines
        gradients |= {index: block.gradients} if block.gradients else {}
        del block, here  # while the next block is measured
        release_memory()
    energies = {name: spectrum.energies.cpu() for name, spectrum in found.items()}
    centred = any(spectrum.mean is not None for spectrum in found.values())
    ladders = ladders_of(low, energies, centred=centred, multiple=target.multiple, latency=target.latency)
    by_sublayer = {f"{index}.{name}": cosine for index in sorted(cosines) for name, cosine in cosines[index].items()}
    return DecomposedModel(found, ladders, scores, by_sublayer, gradients)
