"""Both levels of allocation in sequence: for real, and as a check before anything is measured.

Whether an allocation is refused (an option out of range, a compression out of reach, a rank step that a matrix cannot take, a file for
another model) depends on its parameters and on the shapes of the model, not on the data. So the check runs the allocation on synthetic
data: equal cosines, flat spectra, channels of equal importance. It costs milliseconds where calibration costs minutes, needs nothing from a
method, and refuses nothing that real data could make possible.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mgaa.allocation.channels import Channels, ChannelScores, Pruning, prunable_ffns
from mgaa.allocation.latency import Latency
from mgaa.budget import Ladder, Matrix, check_reachable, explain_unmeasured
from mgaa.errors import UsageError
from mgaa.methods import load_method, method_traits
from mgaa.models.architectures import DECODER, PARTS
from mgaa.ranks import Pruned, Rank, allocate_ranks, ladders_of, reach_of, sizes_of
from mgaa.ratios import allocate_ratios
from mgaa.statistics.accumulate import Accumulator

Chosen = tuple[str, Mapping[str, Any]]
"""A method and its options, including those that all methods of its section share (`band`)."""

SPECTRA = ("metric", "plain")
"""Whose energies level 2 compares: those of the matrix in the factorizer's metric, or those of the weight alone."""


@dataclass(frozen=True)
class Target:
    """Target of both levels.

    Attributes:
        compression: fraction of all linear parameters to remove.
        multiple: the step between ranks, or `auto`.
        pruning: settings of FFN pruning; `None` where FFNs are factorized like everything else.
        latency: selects the ranks that are faster than dense; `None` where only the parameter count matters.
        spectrum: the energies that rules of level 2 compare: `metric` for those of the factorizer, `plain` for those of the weight itself.

    Raises:
        UsageError: the spectrum is neither, or FFNs are to be pruned under a latency objective, whose profile has no times for narrower
            matrices.
    """

    compression: float
    multiple: int | str = "auto"
    pruning: Pruning | None = None
    latency: Latency | None = None
    spectrum: str = "metric"

    def __post_init__(self) -> None:
        if self.spectrum not in SPECTRA:
            raise UsageError(f"ranks.spectrum is {self.spectrum!r}, expected one of {', '.join(SPECTRA)}")
        if self.latency is not None and self.pruning is not None:
            raise UsageError(
                "channels.method prunes the FFNs, but under ranks.objective=latency the profile has no times for narrower matrices: set "
                "channels.method=none, or ranks.objective=parameters"
            )

    def parts(self, matrices: Sequence[Matrix]) -> tuple[list[Matrix], list[Channels]]:
        """Split the matrices into those to factorize, and the FFNs to prune.

        Raises:
            InputError: an FFN is of a kind that cannot be pruned.
        """
        if self.pruning is None:
            return list(matrices), []
        channels = prunable_ffns(matrices, self.pruning)
        names = {ffn.sublayer for ffn in channels}
        return [matrix for matrix in matrices if matrix.sublayer not in names], channels


def allocate(
    ladders: Sequence[Ladder],
    cosines: Mapping[str, float],
    target: Target,
    ratios: Chosen,
    ranks: Chosen,
    pruned: Pruned | None = None,
) -> tuple[dict[str, float], list[Rank]]:
    """Allocate ratios by sublayer, then the ranks and widths of all matrices under them.

    Args:
        ladders: of all matrices to factorize, in model order, with the rank step of the target.
        cosines: mean cosine by sublayer.
        ratios, ranks: the map of level 1 and the rule of level 2.
        pruned: the FFNs to prune.

    Raises:
        UsageError: an option is unknown or out of range, or the compression is out of reach.
    """
    allocated = _ratios(ladders, cosines, target, ratios, pruned or {})
    name, options = ranks
    return allocated, allocate_ranks(name, ladders, allocated, compression=target.compression, pruned=pruned, **options)


def ratios_of(
    matrices: Sequence[Matrix],
    cosines: Mapping[str, float],
    target: Target,
    ratios: Chosen,
    *,
    centred: bool,
    unreached: Collection[str] = (),
) -> dict[str, float]:
    """Allocate ratios only (level 1), which depend on the cosines and on the shapes.

    Args:
        centred: whether the factorizer adds biases.
        unreached: matrices that stay dense because no calibration token reached them.

    Raises:
        UsageError: as `allocate`.
    """
    ladders, pruned = _flat(matrices, target, centred=centred, unreached=unreached)
    return _ratios(ladders, cosines, target, ratios, pruned)


def check_parts(parts: Sequence[str], *, inputs: str, pruned: bool) -> None:
    """Refuse unknown parts of a model, and any part but the decoder where compression goes block by block or changes widths.

    Raises:
        UsageError: a part is unknown, or does not combine with `inputs` or `pruned`.
    """
    if unknown := sorted(set(parts) - set(PARTS)) or (not parts and ["nothing"]):
        raise UsageError(
            f"the parts to compress include {unknown[0]}, expected some of {', '.join(PARTS)} (backbone.parts)"
        )
    others = [part for part in parts if part not in DECODER]
    if others and (inputs == "compressed" or pruned):
        setting = "statistics.inputs is compressed" if inputs == "compressed" else "channels.method prunes FFNs"
        raise UsageError(
            f"the {others[0]} is to be compressed (backbone.parts), but {setting}, which is for the decoder alone: set "
            "statistics.inputs=dense and channels.method=none, or backbone.parts=[decoder]"
        )


def check_anchored(anchored: bool, *, inputs: str, pruned: bool, parts: Sequence[str]) -> None:
    """Refuse settings that anchoring cannot be combined with (`mgaa.anchoring`).

    Raises:
        UsageError: factors are anchored, and a setting contradicts it.
    """
    if not anchored:
        return
    for wrong, setting, remedy in (
        (inputs == "compressed", "statistics.inputs is compressed", "statistics.inputs=dense"),
        (pruned, "channels.method prunes FFNs", "channels.method=none"),
        (list(parts) != list(DECODER), f"backbone.parts is {list(parts)}", "backbone.parts=[decoder]"),
    ):
        if wrong:
            raise UsageError(
                f"{setting}, but factors are anchored (anchor.method) for the decoder at ranks from dense inputs: set {remedy}, or "
                "anchor.method=none"
            )


def preflight(
    matrices: Sequence[Matrix],
    target: Target,
    *,
    factors: Chosen,
    ratios: Chosen,
    ranks: Chosen,
    inputs: str = "dense",
) -> None:
    """Refuse before the calibration what `allocate` would refuse after it.

    Args:
        factors: the factorizer and its options.
        inputs: `compressed` where blocks are allocated one by one.

    Raises:
        UsageError: as `allocate`, for options of the factorizer, and for a rule that needs the whole model where blocks are allocated one
            by one.
        InputError: a file that a method reads is missing or damaged, an FFN cannot be pruned, or a profile belongs to another model.
    """
    if inputs == "compressed" and method_traits("factors", factors[0]).gradients:
        raise UsageError(
            f"factors.method is {factors[0]!r}, which weights errors by gradients of the dense model, but statistics.inputs is compressed: "
            "set statistics.inputs=dense, or take another factors.method"
        )
    check_factorizer(factors)
    ladders, pruned = _flat(matrices, target, centred=adds_biases(factors))
    if inputs == "compressed" and method_traits("ranks", ranks[0]).whole_model:
        raise UsageError(
            f"statistics.inputs is compressed, expected a rule that finds the ranks block by block: ranks.method={ranks[0]} is for "
            "all matrices of the model at once; set statistics.inputs=dense, or take another ranks.method"
        )
    if ranks[0] == "file" and pruned:
        raise UsageError(
            "channels.method prunes the FFNs, expected a rule that finds the ranks: those of a file are for all matrices of the model; set "
            "channels.method=none, or take another ranks.method"
        )
    allocate(ladders, dict.fromkeys(sizes_of(ladders, pruned), 0.5), target, ratios, ranks, pruned)


def _ratios(
    ladders: Sequence[Ladder], cosines: Mapping[str, float], target: Target, ratios: Chosen, pruned: Pruned
) -> dict[str, float]:
    (name, options), sizes, reach = ratios, sizes_of(ladders, pruned), reach_of(ladders, pruned)
    if because := explain_unmeasured(ladders):
        floor = sum((1 - reach[sublayer]) * size for sublayer, size in sizes.items())
        check_reachable(sum(sizes.values()), round(floor), target.compression, because)
    known = [cosines[sublayer] for sublayer in sizes if sublayer in cosines]
    # what adds to no stream (a projector) has no cosine: it counts as an average sublayer, and is compressed about as much as the whole
    # model
    filled = {sublayer: cosines.get(sublayer, sum(known) / max(1, len(known))) for sublayer in sizes}
    return allocate_ratios(name, filled, sizes, reach, compression=target.compression, **options)


def flat_ladders(matrices: Sequence[Matrix], target: Target, *, centred: bool) -> list[Ladder]:
    """Build the ladders of all matrices to factorize from their shapes alone, with flat spectra."""
    ladders, _ = _flat(matrices, target, centred=centred)
    return ladders


def _flat(
    matrices: Sequence[Matrix], target: Target, *, centred: bool, unreached: Collection[str] = ()
) -> tuple[list[Ladder], dict[Channels, ChannelScores]]:
    """Build ladders and scores from the shapes alone: flat spectra, and channels of equal importance."""
    one = torch.ones(1, dtype=torch.float64)
    low, channels = target.parts(matrices)
    energies = {matrix.name: one.expand(min(matrix.m, matrix.n)) for matrix in low if matrix.name not in unreached}
    scores = {
        ffn: ChannelScores(one.expand(ffn.count), {matrix.local: one.expand(ffn.count) for matrix in ffn.matrices})
        for ffn in channels
    }
    ladders = ladders_of(low, energies, centred=centred, multiple=target.multiple, latency=target.latency)
    return ladders, scores


def check_groups(factors: Chosen, groups: int, sequences: int) -> None:
    """Refuse fewer calibration sequences than groups where the factorizer depends on groups; other factorizers take any number.

    Raises:
        UsageError: there are fewer, or the factorizer is unknown.
    """
    if sequences < groups and method_traits("factors", factors[0]).grouped:
        raise UsageError(
            f"statistics.groups is {groups}, but there are {sequences} calibration sequences, expected at least one for each group that "
            f"factors.method={factors[0]} tells apart: give {groups} (data.calibration.samples), or lower statistics.groups to {sequences}"
        )


def adds_biases(factors: Chosen) -> bool:
    """Whether low rank by this factorizer adds biases.

    Raises:
        UsageError: the factorizer is unknown.
    """
    return method_traits("factors", factors[0]).centred


def check_factorizer(factors: Chosen) -> None:
    """Compute the metric of a factorizer once, from two sequences of one token, so that it refuses its options before any calibration.

    Raises:
        UsageError: the factorizer or an option is unknown, or an option is out of range.
    """
    accumulator = Accumulator("a synthetic input", 1, 2)
    for sequence, token in enumerate(torch.eye(2)):
        accumulator.update(sequence, token.unsqueeze(0))
    statistics = replace(accumulator.finish(), gradient=torch.eye(2, dtype=torch.float64))
    load_method("factors", *factors)(statistics, **factors[1])
