"""The whole method in one call, in memory, for notebooks and scripts.

The stages are those of the pipeline, in the same order and through the same functions: statistics -> spectra -> ratios -> ranks -> factors.
Statistics live for one block at a time, and so do dense weights in float64; the spectra of all blocks are kept until the
ranks are known.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.architectures import matrices_of
from mgaa.budget import parameter_budget
from mgaa.checkpoint import apply_factors
from mgaa.errors import UsageError
from mgaa.factors import factorize, spectra
from mgaa.linalg import Spectrum
from mgaa.lowrank import Factors
from mgaa.methods import available, method
from mgaa.ranks import Rank, allocate_ranks, by_sublayer, ladders_of, reach_of
from mgaa.ratios import allocate_ratios
from mgaa.streaming import stream_statistics

Method = str | Mapping[str, Any]
"""A method by name, or a mapping of `method` and its options: `{"method": "softmax", "temperature": 0.1}`."""


RATIOS: Method = {"method": "softmax", "temperature": 0.1, "band": 0.1}
"""Defaults of level 1, chosen on validation text of four backbones (docs/log.md)."""


@dataclass(frozen=True)
class SublayerReport:
    """Level 1 of one sublayer: mean cosine, ratio asked for, ratio reached."""

    name: str
    cosine: float
    ratio: float
    reached: float


@dataclass(frozen=True)
class MatrixReport:
    """Level 2 of one matrix: its rank (`None` is dense), kept share of energy, and relative output error.

    `error` is `||(W - W') X|| / ||W X||` in the factorizer's metric over the calibration tokens, before rounding: `sqrt(1 - energy)`.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    parameters: int
    energy: float
    error: float


@dataclass(frozen=True)
class Report:
    """What was done to a model.

    Attributes:
        compression: fraction of linear parameters removed.
        budget_left: parameters of the budget that no further step could use.
    """

    compression: float
    linear_parameters: int
    budget_left: int
    sublayers: list[SublayerReport]
    matrices: list[MatrixReport]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and dictionaries, for JSON."""
        return asdict(self)


def report(ranks: list[Rank], ratios: Mapping[str, float], cosines: Mapping[str, float], budget: int) -> Report:
    """Collect ratios, ranks and energies; `ratios` and `cosines` by sublayer."""
    dense: dict[str, int] = {}
    kept: dict[str, int] = {}
    for rank in ranks:
        dense[rank.matrix.sublayer] = dense.get(rank.matrix.sublayer, 0) + rank.matrix.parameters
        kept[rank.matrix.sublayer] = kept.get(rank.matrix.sublayer, 0) + rank.parameters
    return Report(
        compression=1 - sum(kept.values()) / sum(dense.values()),
        linear_parameters=sum(kept.values()),
        budget_left=budget - sum(kept.values()),
        sublayers=[SublayerReport(s, cosines[s], ratios[s], 1 - kept[s] / dense[s]) for s in ratios],
        matrices=[
            MatrixReport(
                r.matrix.name, (r.matrix.m, r.matrix.n), r.rank, r.parameters, r.energy, max(0.0, 1 - r.energy) ** 0.5
            )
            for r in ranks
        ],
    )


def compress_(
    model: PreTrainedModel,
    tokens: Int[Tensor, "s t"],
    *,
    compression: float = 0.2,
    factors: Method = "afm",
    ratios: Method = RATIOS,
    ranks: Method = "energy",
    groups: int = 32,
    batch_size: int = 8,
) -> Report:
    """Compress a transformers causal language model in place by MGAA.

    Args:
        model: with an entry in `mgaa.architectures`; its linears are replaced by `LowRankLinear`.
        tokens: calibration token ids, (sequences, length), without padding.
        compression: fraction of the parameters of the decoder blocks' linears to remove, in (0, 1).
        factors, ratios, ranks: the factorizer, the map of level 1 and the rule of level 2 (`Method`); `multiple` is an option of
            every rule, `band` of every map.
        groups: groups of sequences whose means are kept (for pooled covariances).
        batch_size: sequences per forward pass of the calibration.

    Returns:
        What was done; the model then saves with `mgaa.save` and loads with `from_pretrained` once `mgaa` is imported.

    Raises:
        UsageError: a parameter is out of reach or unknown.
        InputError: the model or the tokens cannot be used.
        NumericalError: a weight, an activation or a factor is not finite.
    """
    factorizer, factor_options, _ = _parsed("factors", factors)
    level1, ratio_options, band = _parsed("ratios", ratios, shared="band")
    level2, rank_options, multiple = _parsed("ranks", ranks, shared="multiple")
    matrices = matrices_of(model)
    budget = parameter_budget(matrices, compression)
    cosines: dict[str, float] = {}
    decomposed: dict[str, Spectrum] = {}
    for index, block in enumerate(stream_statistics(model, tokens, groups=groups, batch_size=batch_size)):
        inside = {m.local: m for m in matrices if m.block == index}
        weights = {local: model.get_submodule(m.name).weight.detach() for local, m in inside.items()}
        found = spectra(weights, block, factorizer, **factor_options)
        decomposed |= {inside[local].name: spectrum for local, spectrum in found.items()}
        cosines |= {f"{index}.{sublayer}": cosine for sublayer, cosine in block.cosines.items()}

    energies = {name: spectrum.energies.cpu() for name, spectrum in decomposed.items()}
    centred = any(spectrum.mean is not None for spectrum in decomposed.values())
    ladders = ladders_of(matrices, energies, centred=centred, multiple="auto" if multiple is None else multiple)
    reach = reach_of(ladders)
    parameters = {name: sum(x.matrix.parameters for x in group) for name, group in by_sublayer(ladders).items()}
    given = allocate_ratios(level1, cosines, parameters, reach, compression=compression, band=band, **ratio_options)
    outcome = allocate_ranks(level2, ladders, given, compression=compression, **rank_options)
    apply_factors(model, {r.matrix.name: _factors(model, r, decomposed) for r in outcome if r.rank is not None})
    return report(outcome, given, cosines, budget)


def _factors(model: PreTrainedModel, outcome: Rank, spectra: Mapping[str, Spectrum]) -> Factors:
    linear = model.get_submodule(outcome.matrix.name)
    assert isinstance(linear, nn.Linear)
    assert outcome.rank is not None
    bias = None if linear.bias is None else linear.bias.detach()
    return factorize(linear.weight.detach(), bias, spectra[outcome.matrix.name], outcome.rank)


def _parsed(section: str, given: Method, shared: str = "") -> tuple[str, dict[str, Any], Any]:
    """Name, options, and the value of the option that all methods of the section share; checked before anything is computed."""
    options: dict[str, Any] = {"method": given} if isinstance(given, str) else dict(given)
    if "method" not in options:
        raise UsageError(
            f"{section} is {given!r}, expected a name or a mapping with the key 'method'; methods are {', '.join(available(section))}"
        )
    name, value = options.pop("method"), options.pop(shared, None)
    method(section, name, options)
    return name, options, value
