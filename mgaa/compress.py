"""The whole method in one call, in memory, for notebooks and scripts.

The stages are those of the pipeline, in the same order and through the same functions: statistics -> spectra -> ratios -> ranks -> factors.
Statistics live for one block at a time, and a dense weight in float64 for one matrix at a time; with dense inputs the spectra of all blocks
are kept until the ranks are known, with compressed ones every block is done before the next is measured (`mgaa.sequential`). Several
compressions of one model share everything up to the spectra (`sweep`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.architectures import DECODER, matrices_of
from mgaa.budget import Ladder, Matrix, parameter_budget
from mgaa.channels import Channels, Pruning, Scores, score
from mgaa.checkpoint import apply_channels, apply_factors, twin_of
from mgaa.errors import UsageError
from mgaa.factors import factorize_linear, spectra
from mgaa.fused import unfuse_
from mgaa.latency import COMMAND, Latency, latency_of
from mgaa.levels import Chosen, Target, adds_biases, allocate, check_groups, check_parts, ratios_of, rehearse
from mgaa.linalg import Spectrum
from mgaa.memory import give_back
from mgaa.methods import available, method
from mgaa.prompts import Prompts
from mgaa.ranks import Rank, ladders_of
from mgaa.report import Report, report
from mgaa.sequential import CompressedBlock, compress_block, put_
from mgaa.shelf import is_shelved
from mgaa.streaming import EXPERT_TOKENS, Calibration, Measuring, stream_cosines, stream_statistics

Method = str | Mapping[str, Any]
"""A method by name, or a mapping of `method` and its options: `{"method": "softmax", "temperature": 0.1}`."""


RATIOS: Method = {"method": "softmax", "temperature": 0.1, "band": 0.1}
"""Defaults of level 1, chosen on validation text of four backbones (docs/log.md)."""

LORAP: dict[str, Any] = {
    "factors": "awsvd",
    "ratios": "uniform",
    "ranks": {"method": "lorap", "split": 3.0, "multiple": 1},
    "channels": {"method": "weighted", "keep_least": 0.01, "multiple": 1},
    "inputs": "compressed",
}
"""LoRAP (arXiv 2404.09695) as arguments of `compress_`: `compress_(model, tokens, compression=0.2, **LORAP)`."""


LATENCY = ("objective", "profile", "tokens", "device")
"""Options of every rule of level 2, beside `multiple`."""

Allocated = tuple[dict[str, float], list[Rank], dict[str, float]]
"""Ratios by sublayer, the outcome for every matrix, and cosines by sublayer."""


def compress_(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    *,
    compression: float = 0.2,
    factors: Method = "afm",
    ratios: Method | None = None,
    ranks: Method = "energy",
    channels: Method = "none",
    inputs: str = "dense",
    groups: int = 32,
    batch_size: int = 8,
    expert_tokens: float = EXPERT_TOKENS,
    parts: Sequence[str] = DECODER,
) -> Report:
    """Compress a transformers causal language model in place: by MGAA, or with `**LORAP` by LoRAP.

    Args:
        model: with an entry in `mgaa.architectures`; its linears are replaced by `LowRankLinear`, and layers that hold several
            matrices by one linear for each (`mgaa.fused`).
        tokens: calibration token ids, (sequences, length), without padding; or prompts with images (`mgaa.encode`).
        compression: fraction of the parameters of the decoder blocks' linears to remove, in (0, 1).
        factors, ratios, ranks: the factorizer, the map of level 1 and the rule of level 2 (`Method`); `band` is an option of every map,
            `multiple` of every rule, and with `"objective": "latency"` so are `profile` (a path), `tokens` and `device`
            (`mgaa.latency.latency_of`). `None` is `RATIOS`, or where the ranks are those of a file, the ratios of that file.
        channels: `none` factorizes the FFNs like everything else; `weighted` prunes their channels, with the options of
            `mgaa.channels.Pruning`.
        inputs: whose activations are measured: those of the dense model, or those behind the compressed blocks before (`mgaa.sequential`).
        groups: groups of sequences whose means are kept (for pooled covariances, which need at least as many sequences).
        batch_size: sequences per forward pass of the calibration.
        expert_tokens: calibration tokens per channel, below which the covariance of an expert is shrunk.
        parts: what of the model is compressed: the decoder, and of a model that sees also `vision` and `projector`, whose parameters then
            count as well.

    Returns:
        What was done; the model then saves with `mgaa.save` and loads with `from_pretrained` once `mgaa` is imported.

    Raises:
        UsageError: a parameter is out of reach or unknown; this is found before anything is measured.
        InputError: the model, the tokens or an allocation file cannot be used.
        NumericalError: a weight, an activation or a factor is not finite.
    """
    if inputs not in ("dense", "compressed"):
        raise UsageError(f"inputs is {inputs!r}, expected 'dense' or 'compressed'")
    methods, target = _methods(factors, ratios, ranks), _target(compression, ranks, channels, model)
    measuring = Measuring(groups, batch_size, expert_tokens)
    matrices = _checked(model, tokens, [target], measuring, methods, inputs, parts)
    if inputs == "compressed":
        given, outcome, cosines = _sequentially(model, tokens, matrices, target, measuring, **methods)
    else:
        given, outcome, cosines = _at_once(model, tokens, matrices, target, measuring, parts=parts, **methods)
    return report(outcome, given, cosines, parameter_budget(matrices, compression), target.latency)


def sweep(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    compressions: Sequence[float],
    *,
    factors: Method = "afm",
    ratios: Method | None = None,
    ranks: Method = "energy",
    channels: Method = "none",
    groups: int = 32,
    batch_size: int = 8,
    expert_tokens: float = EXPERT_TOKENS,
    parts: Sequence[str] = DECODER,
) -> Iterator[tuple[PreTrainedModel, Report]]:
    """Several compressions of one model on dense inputs, by one calibration and one decomposition; each is what `compress_` gives.

    Args:
        model: as in `compress_`; it stays dense (layers that hold several matrices are taken apart).
        tokens: as in `compress_`.
        compressions: the fractions to remove.
        factors, ratios, ranks, channels, groups, batch_size, expert_tokens, parts: as in `compress_`.

    Returns:
        For each compression in order: a compressed model that shares every other tensor with `model`, and what was done. Each is made
        when it is asked for, and costs a slice and a refit of every matrix.

    Raises:
        UsageError, InputError, NumericalError: as `compress_`; all but the range of factors is found in the call itself.
    """
    methods = _methods(factors, ratios, ranks)
    targets = [_target(compression, ranks, channels, model) for compression in compressions]
    measuring = Measuring(groups, batch_size, expert_tokens)
    matrices = _checked(model, tokens, targets, measuring, methods, parts=parts)
    if not targets:
        return iter(())
    measured = decomposed(model, tokens, matrices, targets[0], measuring, methods["factors"], parts)

    def compressed(target: Target) -> tuple[PreTrainedModel, Report]:
        given, outcome = measured.allocate(target, methods["ratios"], methods["ranks"])
        twin = twin_of(model)
        measured.put_(twin, outcome)
        budget = parameter_budget(matrices, target.compression)
        return twin, report(outcome, given, measured.cosines, budget, target.latency)

    return map(compressed, targets)


@dataclass(frozen=True, eq=False)
class Decomposed:
    """What all allocations of a model share.

    Attributes:
        spectra: of every matrix that is factorized, by name.
        ladders: theirs, in model order.
        scores: of the FFNs that are pruned.
        cosines: by sublayer.
    """

    spectra: dict[str, Spectrum]
    ladders: list[Ladder]
    scores: dict[Channels, Scores]
    cosines: dict[str, float]

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
        kept = {c.matrices[0].block: s.kept(widths[c.sublayer], c.pruning.keep_least) for c, s in self.scores.items()}
        apply_channels(model, kept)


def decomposed(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    matrices: Sequence[Matrix],
    target: Target,
    measuring: Measuring,
    factors: Chosen,
    parts: Sequence[str] = DECODER,
) -> Decomposed:
    """Measure every block on dense inputs and decompose its matrices; nothing of the model changes."""
    name, options = factors
    low, pruned = target.parts(matrices)
    cosines: dict[str, float] = {}
    found: dict[str, Spectrum] = {}
    scores: dict[Channels, Scores] = {}
    for index, block in enumerate(stream_statistics(model, tokens, **asdict(measuring), parts=parts)):
        weights = {m.local: model.get_submodule(m.name).weight.detach() for m in matrices if m.block == index}
        inside = {m.local: m.name for m in low if m.block == index}
        give_back()
        here = spectra({local: weights[local] for local in inside}, block, name, **options)
        found |= {inside[local]: spectrum for local, spectrum in here.items()}
        scores |= {each: score(each, weights, block) for each in pruned if each.matrices[0].block == index}
        cosines |= {f"{index}.{sublayer}": cosine for sublayer, cosine in block.cosines.items()}
        del block, here  # while the next block is measured
        give_back()
    energies = {name: spectrum.energies.cpu() for name, spectrum in found.items()}
    centred = any(spectrum.mean is not None for spectrum in found.values())
    ladders = ladders_of(low, energies, centred=centred, multiple=target.multiple, latency=target.latency)
    return Decomposed(found, ladders, scores, cosines)


def _at_once(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    matrices: list[Matrix],
    target: Target,
    measuring: Measuring,
    *,
    factors: Chosen,
    ratios: Chosen,
    ranks: Chosen,
    parts: Sequence[str],
) -> Allocated:
    """Dense inputs: every block is measured before the first is compressed."""
    measured = decomposed(model, tokens, matrices, target, measuring, factors, parts)
    given, outcome = measured.allocate(target, ratios, ranks)
    measured.put_(model, outcome, last=True)
    return given, outcome, measured.cosines


def _sequentially(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    matrices: list[Matrix],
    target: Target,
    measuring: Measuring,
    *,
    factors: Chosen,
    ratios: Chosen,
    ranks: Chosen,
) -> Allocated:
    """Compressed inputs: ratios from the cosines of the dense model, then one block after the other."""
    cosines = {
        f"{index}.{sublayer}": cosine
        for index, block in enumerate(stream_cosines(model, tokens, batch_size=measuring.batch_size))
        for sublayer, cosine in block.cosines.items()
    }
    given = ratios_of(matrices, cosines, target, ratios, centred=adds_biases(factors))
    twin = twin_of(model)  # an error in a later block leaves the model as it was
    calibration = Calibration(twin, tokens, measuring)
    blocks: list[CompressedBlock] = []
    for index in range(len(calibration)):
        spent = sum(rank.parameters for block in blocks for rank in block.ranks)
        statistics = calibration.statistics(index)
        blocks.append(compress_block(twin, index, statistics, matrices, given, target, factors, ranks, spent=spent))
        put_(twin, index, blocks[index])
        calibration.advance(index)
    for index, block in enumerate(blocks):
        put_(model, index, block)
    return given, [rank for block in blocks for rank in block.ranks], cosines


def _methods(factors: Method, ratios: Method | None, ranks: Method) -> dict[str, Chosen]:
    """The methods of all stages, each with its options."""
    factorizer, factor_options, _ = _parsed("factors", factors)
    level2, rank_options, _ = _parsed("ranks", ranks, shared=("multiple", *LATENCY))
    level1, ratio_options, shared = _parsed("ratios", _ratios(ratios, level2, rank_options), shared=("band",))
    return {
        "factors": (factorizer, factor_options),
        "ratios": (level1, {**ratio_options, "band": shared.get("band")}),
        "ranks": (level2, rank_options),
    }


def _target(compression: float, ranks: Method, channels: Method, model: PreTrainedModel) -> Target:
    shared = _parsed("ranks", ranks, shared=("multiple", *LATENCY))[2]
    multiple = shared.pop("multiple", None)
    latency = _latency(shared, dtype=str(model.dtype).removeprefix("torch."))
    return Target(compression, "auto" if multiple is None else multiple, _pruning(channels), latency)


def _checked(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    targets: Sequence[Target],
    measuring: Measuring,
    methods: Mapping[str, Chosen],
    inputs: str = "dense",
    parts: Sequence[str] = DECODER,
) -> list[Matrix]:
    """The matrices of the model, after everything that can be refused before anything is measured."""
    check_parts(parts, inputs=inputs, pruned=any(target.pruning is not None for target in targets))
    if is_shelved(model):
        raise UsageError(
            "the blocks of the model stay in their files, where nothing can be put into them: load it without stream, or compress it by "
            "python -m flows.compress, which goes block by block"
        )
    matrices = matrices_of(unfuse_(model, parts), parts)
    for target in targets:
        parameter_budget(matrices, target.compression)
        rehearse(matrices, target, inputs=inputs, **methods)
    check_groups(methods["factors"], measuring.groups, len(tokens))
    return matrices


def _pruning(given: Method) -> Pruning | None:
    """How the FFNs are pruned, `None` for not at all."""
    options = {"method": given} if isinstance(given, str) else dict(given)
    name = options.pop("method", None)
    if name not in ("none", "weighted"):
        raise UsageError(f"channels is {given!r}, expected 'none', 'weighted', or a mapping with the key 'method'")
    if name == "none":
        return None
    if unknown := sorted(set(options) - {field.name for field in fields(Pruning)}):
        raise UsageError(
            f"channels.{unknown[0]} is not an option; it takes {', '.join(field.name for field in fields(Pruning))}"
        )
    return Pruning(**options)


def _latency(given: Mapping[str, Any], *, dtype: str) -> Latency | None:
    """The objective among the options that all rules share, `None` for parameters."""
    objective = given.get("objective", "parameters")
    if objective not in ("parameters", "latency"):
        raise UsageError(f"ranks.objective is {objective!r}, expected 'parameters' or 'latency'")
    chosen = {name: value for name, value in given.items() if name != "objective"}
    if objective == "latency" and chosen.get("profile") is None:
        raise UsageError(f"ranks.profile is missing: ranks.objective=latency needs what `{COMMAND}` writes")
    if objective == "latency":
        return latency_of(dtype=dtype, **chosen)
    if idle := sorted(chosen):
        raise UsageError(f"ranks.{idle[0]} has no effect without ranks.objective=latency: leave it out")
    return None


def _ratios(given: Method | None, level2: str, options: Mapping[str, Any]) -> Method:
    """Level 1 as it is given, or its default; ranks that are read from a file leave no other ratios than those of the file."""
    if level2 != "file":
        return RATIOS if given is None else given
    if given is not None and (given if isinstance(given, str) else given.get("method")) != "file":
        raise UsageError(
            f"ratios is {given!r}, which has no effect on ranks that are read from a file: leave it out, or take another ranks.method"
        )
    return {"method": "file", **options} if given is None else given


def _parsed(section: str, given: Method, shared: Sequence[str] = ()) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Name, options, and apart those that all methods of the section share; checked before anything is computed."""
    options: dict[str, Any] = {"method": given} if isinstance(given, str) else dict(given)
    if "method" not in options:
        raise UsageError(
            f"{section} is {given!r}, expected a name or a mapping with the key 'method'; methods are {', '.join(available(section))}"
        )
    name, common = options.pop("method"), {key: options.pop(key) for key in shared if key in options}
    method(section, name, options)
    return name, options, common
