"""The whole method in one call, in memory, for notebooks and scripts.

The stages are those of the pipeline, in the same order and through the same functions: statistics -> spectra -> ratios -> ranks -> factors.
Statistics live for one block at a time, and so do dense weights in float64; the spectra of all blocks are kept until the
ranks are known.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa import allocation
from mgaa.architectures import matrices_of
from mgaa.budget import parameter_budget
from mgaa.checkpoint import apply_factors
from mgaa.errors import UsageError
from mgaa.factors import factorize, spectra
from mgaa.fused import unfuse_
from mgaa.levels import allocate, rehearse
from mgaa.linalg import Spectrum
from mgaa.lowrank import Factors
from mgaa.methods import available, method
from mgaa.ranks import Rank, ladders_of
from mgaa.streaming import EXPERT_TOKENS, stream_statistics

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

    def save(self, path: str | Path) -> None:
        """Write the allocation to a file, from which the methods `file` of `ratios` and `ranks` take it again (`mgaa.allocation`).

        Raises:
            ResourceError: the file cannot be written.
        """
        sublayers, matrices = ([asdict(each) for each in given] for given in (self.sublayers, self.matrices))
        entry = {
            "compression": self.compression,
            "budget": self.linear_parameters + self.budget_left,
            "linear_parameters": self.linear_parameters,
            "slack": self.budget_left,
            "sublayers": {each.pop("name"): each for each in sublayers},
            "matrices": {x.pop("name"): dict(zip("mn", x.pop("shape"), strict=True)) | x for x in matrices},
        }
        allocation.save(entry, path)


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
    ratios: Method | None = None,
    ranks: Method = "energy",
    groups: int = 32,
    batch_size: int = 8,
    expert_tokens: float = EXPERT_TOKENS,
) -> Report:
    """Compress a transformers causal language model in place by MGAA.

    Args:
        model: with an entry in `mgaa.architectures`; its linears are replaced by `LowRankLinear`, and layers that hold several
            matrices by one linear for each (`mgaa.fused`).
        tokens: calibration token ids, (sequences, length), without padding.
        compression: fraction of the parameters of the decoder blocks' linears to remove, in (0, 1).
        factors, ratios, ranks: the factorizer, the map of level 1 and the rule of level 2 (`Method`); `multiple` is an option of
            every rule, `band` of every map. `None` is `RATIOS`, or where the ranks are those of a file, the ratios of that file.
        groups: groups of sequences whose means are kept (for pooled covariances).
        batch_size: sequences per forward pass of the calibration.
        expert_tokens: calibration tokens per channel, below which the covariance of an expert is shrunk.

    Returns:
        What was done; the model then saves with `mgaa.save` and loads with `from_pretrained` once `mgaa` is imported.

    Raises:
        UsageError: a parameter is out of reach or unknown; this is found before anything is measured.
        InputError: the model, the tokens or an allocation file cannot be used.
        NumericalError: a weight, an activation or a factor is not finite.
    """
    factorizer, factor_options, _ = _parsed("factors", factors)
    level2, rank_options, multiple = _parsed("ranks", ranks, shared="multiple")
    level1, ratio_options, band = _parsed("ratios", _ratios(ratios, level2, rank_options), shared="band")
    levels = {"ratios": (level1, {**ratio_options, "band": band}), "ranks": (level2, rank_options)}
    step = "auto" if multiple is None else multiple
    matrices = matrices_of(unfuse_(model))
    budget = parameter_budget(matrices, compression)
    rehearse(matrices, compression, factors=(factorizer, factor_options), multiple=step, **levels)
    cosines: dict[str, float] = {}
    decomposed: dict[str, Spectrum] = {}
    measuring: dict[str, Any] = {"groups": groups, "batch_size": batch_size, "expert_tokens": expert_tokens}
    for index, block in enumerate(stream_statistics(model, tokens, **measuring)):
        inside = {m.local: m for m in matrices if m.block == index}
        weights = {local: model.get_submodule(m.name).weight.detach() for local, m in inside.items()}
        found = spectra(weights, block, factorizer, **factor_options)
        decomposed |= {inside[local].name: spectrum for local, spectrum in found.items()}
        cosines |= {f"{index}.{sublayer}": cosine for sublayer, cosine in block.cosines.items()}

    energies = {name: spectrum.energies.cpu() for name, spectrum in decomposed.items()}
    centred = any(spectrum.mean is not None for spectrum in decomposed.values())
    ladders = ladders_of(matrices, energies, centred=centred, multiple=step)
    given, outcome = allocate(ladders, cosines, compression, **levels)
    apply_factors(model, {r.matrix.name: _factors(model, r, decomposed) for r in outcome if r.rank is not None})
    return report(outcome, given, cosines, budget)


def _factors(model: PreTrainedModel, outcome: Rank, spectra: Mapping[str, Spectrum]) -> Factors:
    linear = model.get_submodule(outcome.matrix.name)
    assert isinstance(linear, nn.Linear)
    assert outcome.rank is not None
    bias = None if linear.bias is None else linear.bias.detach()
    return factorize(linear.weight.detach(), bias, spectra[outcome.matrix.name], outcome.rank)


def _ratios(given: Method | None, level2: str, options: Mapping[str, Any]) -> Method:
    """Level 1 as it is given, or its default; ranks that are read from a file leave no other ratios than those of the file."""
    if level2 != "file":
        return RATIOS if given is None else given
    if given is not None and (given if isinstance(given, str) else given.get("method")) != "file":
        raise UsageError(
            f"ratios is {given!r}, which has no effect on ranks that are read from a file: leave it out, or take another ranks.method"
        )
    return {"method": "file", **options} if given is None else given


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
