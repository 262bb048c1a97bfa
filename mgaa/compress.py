"""The whole method in one call, in memory, for notebooks and scripts.

The stages are those of the pipeline, in the same order and through the same functions: statistics -> spectra -> ratios -> ranks -> factors.
With dense inputs the spectra of all blocks are kept until the ranks are known (`mgaa.decomposed`); with compressed inputs each block is
finished before the next is measured (`mgaa.anchoring.sequential`). Several compressions of one model share everything up to the spectra
(`sweep`).
"""

from collections.abc import Iterator, Sequence

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.anchoring.refinement import check_tunable
from mgaa.anchoring.sequential import CompressedBlock, compress_block, put_
from mgaa.arguments import LORAP, LOSS, RATIOS, Method, Methods, methods_of, target_of
from mgaa.budget import Matrix, parameter_budget
from mgaa.checkpoints.meta_model import meta_copy
from mgaa.checkpoints.save import check_savable, twin_of
from mgaa.decomposed import decompose_model
from mgaa.errors import UsageError
from mgaa.evaluation.causality import check_decoder
from mgaa.evaluation.perplexity import eval_mode
from mgaa.inputs.prompts import Prompts
from mgaa.inputs.readers import check_differentiable, coerce_arguments, to_change
from mgaa.inputs.token_rows import Tokens, check_fit, sequences
from mgaa.inputs.torch_defaults import default_torch_state
from mgaa.inputs.values import fraction, fractions, integer, method, method_or_none, names, number
from mgaa.levels import (
    Target,
    adds_biases,
    check_anchored,
    check_groups,
    check_parts,
    preflight,
    ratios_of,
)
from mgaa.models.architectures import DECODER, matrices_of
from mgaa.models.fused import unfuse_
from mgaa.ranks import Rank
from mgaa.report import Report, build_report
from mgaa.statistics.calibration import EXPERT_TOKENS, Calibration, CalibrationSettings, stream_cosines

__all__ = ["LORAP", "LOSS", "RATIOS", "Method", "compress_", "sweep"]

_READERS = {
    **{"model": to_change, "tokens": sequences, "parts": names, "ratios": method_or_none},
    **dict.fromkeys(("factors", "ranks", "channels", "anchor", "refinement"), method),
    **{"groups": integer, "batch_size": integer, "expert_tokens": number},
}
"""Readers of the arguments that both functions have (`mgaa.inputs.readers`)."""

Allocated = tuple[dict[str, float], list[Rank], dict[str, float]]
"""Ratios by sublayer, the outcome for every matrix, and cosines by sublayer."""


@coerce_arguments(**_READERS, compression=fraction)
def compress_(
    model: PreTrainedModel,
    tokens: Tokens,
    *,
    compression: float = 0.2,
    factors: Method = "afm",
    ratios: Method | None = None,
    ranks: Method = "energy",
    channels: Method = "none",
    anchor: Method = "none",
    refinement: Method = "none",
    inputs: str = "dense",
    groups: int = 32,
    batch_size: int = 8,
    expert_tokens: float = EXPERT_TOKENS,
    unreached: str = "stop",
    parts: Sequence[str] = DECODER,
) -> Report:
    """Compress a transformers causal language model in place: by MGAA, or with `**LORAP` by LoRAP.

    Args:
        model: has an entry in `mgaa.models.entries`. Its linears are replaced by `LowRankLinear`, and layers that hold several matrices by
            one linear each (`mgaa.models.fused`). It is measured in eval mode and left in the mode it came in.
        tokens: calibration token ids in any form of `mgaa.inputs.token_rows`: (sequences, length), lists of any lengths, a tokenizer's
            output, whose padding is removed; or prompts with images (`mgaa.encode`).
        compression: fraction of the parameters of the decoder blocks' linears to remove, in (0, 1).
        factors, ratios, ranks: the factorizer, the map of level 1 and the rule of level 2 (`Method`); `band` and `residual` are
            options of every map, `multiple` and `spectrum` of every rule, and with `"objective": "latency"` so are `profile` (a path),
            `tokens` and `device` (`mgaa.allocation.latency.load_latency`). `None` is `RATIOS`, or the ratios of the file where the ranks
            come from one.
        channels: `none` factorizes the FFNs like everything else; `weighted` prunes their channels, with the options of
            `mgaa.allocation.channels.Pruning`.
        anchor: `none`, or how factors are fitted to the dense model after compressed blocks (`mgaa.anchoring`): `outputs` fits to the
            outputs of each matrix, `stream` fits o and down to the residual stream as well. Options: `dense` and `damping`.
        refinement: `none`, or `adam`, which then tunes the matrices of each block jointly, with the options of
            `mgaa.anchoring.refinement.Refinement`.
        inputs: whose activations are measured: `dense` for those of the dense model, `compressed` for those after the compressed blocks
            that precede (`mgaa.anchoring.sequential`).
        groups: groups of sequences whose means are kept (for pooled covariances, which need at least one sequence per group).
        batch_size: sequences per forward pass of the calibration.
        expert_tokens: calibration tokens per channel, below which the covariance of an expert is shrunk.
        unreached: treatment of experts that no calibration token reaches: `stop` raises an error; with `dense` their matrices stay
            unchanged and the others make up the difference.
        parts: parts of the model to compress: the decoder and, of a vision-language model, also `vision` and `projector`, whose parameters
            then count as well.

    Returns:
        The report; the model can then be saved with `mgaa.save` and loaded with `from_pretrained` once `mgaa` is imported.

    Raises:
        UsageError: a parameter is out of reach or unknown; raised before anything is measured.
        InputError: the model, the tokens or an allocation file cannot be used.
        NumericalError: a weight, an activation or a factor is not finite.
    """
    assert isinstance(tokens, Prompts | Tensor)  # as the reader returns them
    if inputs not in ("dense", "compressed"):
        raise UsageError(f"inputs is {inputs!r}, expected 'dense' or 'compressed'")
    methods = methods_of(factors, ratios, ranks, anchor, refinement)
    target = target_of(compression, ranks, channels, model)
    measuring = CalibrationSettings(groups, batch_size, expert_tokens, unreached)
    matrices = _checked_matrices(model, tokens, [target], measuring, methods, inputs, parts)
    with eval_mode(model):
        if inputs == "compressed":
            ratios_by_sublayer, outcome, cosines = _sequentially(model, tokens, matrices, target, measuring, methods)
        else:
            ratios_by_sublayer, outcome, cosines = _at_once(model, tokens, matrices, target, measuring, methods, parts)
    return build_report(outcome, ratios_by_sublayer, cosines, parameter_budget(matrices, compression), target.latency)


@coerce_arguments(**_READERS, compressions=fractions)
def sweep(
    model: PreTrainedModel,
    tokens: Tokens,
    compressions: Sequence[float],
    *,
    factors: Method = "afm",
    ratios: Method | None = None,
    ranks: Method = "energy",
    channels: Method = "none",
    anchor: Method = "none",
    refinement: Method = "none",
    groups: int = 32,
    batch_size: int = 8,
    expert_tokens: float = EXPERT_TOKENS,
    unreached: str = "stop",
    parts: Sequence[str] = DECODER,
) -> Iterator[tuple[PreTrainedModel, Report]]:
    """Compress one model several times on dense inputs, from one calibration and one decomposition; each result is that of `compress_`.

    Args:
        model: as in `compress_`; it stays dense (layers that hold several matrices are split).
        tokens: as in `compress_`.
        compressions: the fractions to remove.
        factors, ratios, ranks, channels, anchor, refinement, groups, batch_size, expert_tokens, unreached, parts: as in `compress_`.

    Returns:
        For each compression in order: a compressed model that shares every other tensor with `model`, and its report. Each is made on
        demand, at the cost of a slice and a refit of every matrix; with an anchor, of a pass through both models.

    Raises:
        UsageError, InputError, NumericalError: as `compress_`; all but non-finite factors are found in the call itself.
    """
    assert isinstance(tokens, Prompts | Tensor)
    methods = methods_of(factors, ratios, ranks, anchor, refinement)
    targets = [target_of(compression, ranks, channels, model) for compression in compressions]
    measuring = CalibrationSettings(groups, batch_size, expert_tokens, unreached)
    matrices = _checked_matrices(model, tokens, targets, measuring, methods, parts=parts)
    if not targets:
        return iter(())
    with eval_mode(model):
        measured = decompose_model(
            model, tokens, matrices, targets[0], measuring, methods.factors, parts, residual=methods.residual
        )

    def compressed(target: Target) -> tuple[PreTrainedModel, Report]:
        twin = twin_of(model)
        with default_torch_state(model), eval_mode(model), eval_mode(twin):
            ratios_by_sublayer, outcome = measured.allocate(target, methods.ratios, methods.ranks)
            if methods.anchoring is None:
                measured.put_(twin, outcome)
            else:
                settings = (measuring, methods.factors, methods.anchoring, methods.refinement)
                measured.anchor_(twin, outcome, model, tokens, *settings)
        budget = parameter_budget(matrices, target.compression)
        return twin, build_report(outcome, ratios_by_sublayer, measured.cosines, budget, target.latency)

    return map(compressed, targets)


def _at_once(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    matrices: list[Matrix],
    target: Target,
    measuring: CalibrationSettings,
    methods: Methods,
    parts: Sequence[str],
) -> Allocated:
    """Compress on dense inputs: measure every block before the first is compressed."""
    measured = decompose_model(
        model, tokens, matrices, target, measuring, methods.factors, parts, residual=methods.residual
    )
    ratios, outcome = measured.allocate(target, methods.ratios, methods.ranks)
    if methods.anchoring is None:
        measured.put_(model, outcome, last=True)
    else:
        measured.spectra.clear()
        settings = (measuring, methods.factors, methods.anchoring, methods.refinement)
        measured.anchor_(model, outcome, model, tokens, *settings)
    return ratios, outcome, measured.cosines


def _sequentially(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    matrices: list[Matrix],
    target: Target,
    measuring: CalibrationSettings,
    methods: Methods,
) -> Allocated:
    """Compress on compressed inputs: ratios from the cosines of the dense model, then one block after the other."""
    cosines = {
        f"{index}.{sublayer}": cosine
        for index, block in enumerate(stream_cosines(model, tokens, batch_size=measuring.batch_size))
        for sublayer, cosine in block.compared(residual=methods.residual).items()
    }
    ratios = ratios_of(matrices, cosines, target, methods.ratios, centred=adds_biases(methods.factors))
    twin = twin_of(model)  # an error in a later block leaves the model as it was
    calibration = Calibration(twin, tokens, measuring)
    blocks: list[CompressedBlock] = []
    for index in range(len(calibration)):
        spent = sum(rank.parameters for block in blocks for rank in block.ranks)
        statistics = calibration.statistics(index)
        blocks.append(
            compress_block(
                twin, index, statistics, matrices, ratios, target, methods.factors, methods.ranks, spent=spent
            )
        )
        put_(twin, index, blocks[index])
        calibration.advance(index)
    for index, block in enumerate(blocks):
        put_(model, index, block)
    return ratios, [rank for block in blocks for rank in block.ranks], cosines


def _checked_matrices(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    targets: Sequence[Target],
    measuring: CalibrationSettings,
    methods: Methods,
    inputs: str = "dense",
    parts: Sequence[str] = DECODER,
) -> list[Matrix]:
    """Return the matrices of the model, after every check that needs no measurement."""
    pruned = any(target.pruning is not None for target in targets)
    check_parts(parts, inputs=inputs, pruned=pruned)
    check_anchored(methods.anchoring is not None, inputs=inputs, pruned=pruned, parts=parts)
    if methods.refinement is not None:
        check_tunable(model.dtype)
    if methods.gradients or methods.refinement is not None:
        check_differentiable(model)
    check_savable(model)
    matrices = matrices_of(
        unfuse_(meta_copy(model), parts), parts
    )  # the model stays unchanged until every check has passed
    for target in targets:
        parameter_budget(matrices, target.compression)
        preflight(matrices, target, inputs=inputs, **methods.levels)
    check_groups(methods.factors, measuring.groups, len(tokens))
    check_fit(tokens, model)
    with eval_mode(model):
        check_decoder(model)
    unfuse_(model, parts)
    return matrices
