"""One calibration and one decomposition that all allocations of a model share: factors at any ranks are slices, or a pass of both models.

Statistics exist for one block at a time, and a dense weight in float64 for one matrix at a time; the spectra of all blocks are kept.
Methods that use gradients decompose blocks from the last to the first, because the hidden states at the inputs of earlier blocks are still
available.
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
from mgaa.decomposition.linalg import Spectrum, plain_energies
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
    """Spectra, scores and cosines that all allocations of a model share.

    Attributes:
        spectra: of every matrix to factorize, by name.
        ladders: of the same matrices, in model order.
        scores: channel scores of the FFNs to prune.
        cosines: mean cosine by sublayer, of the stream or of the sublayer alone.
        gradients: second moments of the output gradients, by block, then by linear; empty where the factorizer needs none.
    """

    spectra: dict[str, Spectrum]
    ladders: list[Ladder]
    scores: dict[Channels, ChannelScores]
    cosines: dict[str, float]
    gradients: dict[int, dict[str, Tensor]]

    def allocate(self, target: Target, ratios: Chosen, ranks: Chosen) -> tuple[dict[str, float], list[Rank]]:
        """Allocate ratios by sublayer and an outcome for every matrix; the target may have any compression (`mgaa.levels.allocate`)."""
        return allocate(self.ladders, self.cosines, target, ratios, ranks, self.scores)

    def put_(self, model: PreTrainedModel, outcome: Sequence[Rank], *, last: bool = False) -> None:
        """Put the factors at these ranks, and the channels of these widths, into the model or into a twin of it.

        Args:
            model: the decomposed model, or a twin of it.
            outcome: for every matrix.
            last: whether the spectra are needed no more; each is then freed as soon as its factors are made.
        """
        ranked = {r.matrix.name: r.rank for r in outcome if r.rank is not None}
        spectra = self.spectra if last else dict(self.spectra)
        for name in spectra.keys() - ranked.keys():
            del spectra[name]
        # the model changes only once all factors exist, so that an error leaves it unchanged
        apply_factors(model, {n: factorize_linear(model, n, spectra.pop(n), rank) for n, rank in ranked.items()})
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
        """Like `put_`, with factors fitted to the dense model after compressed blocks (`mgaa.anchoring`).

        Args:
            model, outcome: as in `put_`; the model may be the dense one itself, and changes only once all factors exist.
            dense: the decomposed model.
            tokens, measuring, factors, anchoring, refinement: as in `mgaa.anchoring.anchoring.anchor_blocks`.
        """
        matrices, ranks = [rank.matrix for rank in outcome], {rank.matrix.name: rank.rank for rank in outcome}
        settings = (factors, self.gradients, measuring, anchoring, refinement)
        blocks = [*anchor_blocks(dense, tokens, matrices, ranks, *settings)]
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
    *,
    residual: bool = True,
) -> DecomposedModel:
    """Measure every block on dense inputs and decompose its matrices; the model stays unchanged.

    Args:
        residual: which cosines level 1 compares (`mgaa.statistics.statistics.BlockStatistics.compared`).
    """
    name, options = factors
    low, pruned = target.parts(matrices)
    cosines: dict[int, dict[str, float]] = {}
    spectra: dict[str, Spectrum] = {}
    scores: dict[Channels, ChannelScores] = {}
    gradients: dict[int, dict[str, Tensor]] = {}
    plain: dict[str, Tensor] = {}
    if method_traits("factors", name).gradients:
        blocks = differentiate_model(model, tokens, measuring, parts=parts)
    else:
        blocks = enumerate(stream_statistics(model, tokens, **asdict(measuring), parts=parts))
    for index, block in blocks:
        weights = {m.local: model.get_submodule(m.name).weight.detach() for m in matrices if m.block == index}
        inside = {m.local: m.name for m in low if m.block == index and m.local in block.shared}
        release_memory()
        here = decompose_block({local: weights[local] for local in inside}, block, name, **options)
        spectra |= {inside[local]: spectrum for local, spectrum in here.items()}
        if target.spectrum == "plain":
            plain |= {inside[local]: plain_energies(weights[local]).cpu() for local in inside}
        scores |= {ffn: score(ffn, weights, block) for ffn in pruned if ffn.matrices[0].block == index}
        cosines[index] = block.compared(residual=residual)
        gradients |= {index: block.gradients} if block.gradients else {}
        del block, here  # free both while the next block is measured
        release_memory()
    energies = {name: spectrum.energies.cpu() for name, spectrum in spectra.items()}
    centred = any(spectrum.mean is not None for spectrum in spectra.values())
    ladders = ladders_of(low, energies, centred=centred, multiple=target.multiple, latency=target.latency, plain=plain)
    by_sublayer = {f"{index}.{name}": cosine for index in sorted(cosines) for name, cosine in cosines[index].items()}
    return DecomposedModel(spectra, ladders, scores, by_sublayer, gradients)
