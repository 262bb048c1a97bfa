"""Recipes of the models of a run: the method, and its baselines at the same budget.

A recipe consists of plain values, the arguments of steps; the models of a run differ in nothing but their recipes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from mgaa.errors import UsageError
from mgaa.methods import method_traits
from tasks.config.compatibility import check_compatibility
from tasks.config.parameters import Parameters

UNIFORM = "uniform"
"""The baseline of both levels."""
RANDOM = "random"
"""The baseline of searches."""


@dataclass(frozen=True)
class Recipe:
    """Arguments of the steps that make one model.

    Attributes:
        compression, multiple: the fraction of linear parameters to remove, and the step between ranks.
        ratios: level 1: `method`, `options`, `band`.
        ranks: level 2: `method`, `options`.
        channels: settings of pruning; None if FFNs are factorized.
        search: method of the search that finds the ranks instead of both levels; None without one.
        latency: profile and tokens at which ranks must be faster than dense; None if the objective is parameters.
    """

    compression: float
    multiple: int | str
    ratios: Mapping[str, Any]
    ranks: Mapping[str, Any]
    channels: Mapping[str, Any] | None = None
    search: str | None = None
    latency: Mapping[str, Any] | None = None

    def level1(self, *, centred: bool) -> dict[str, Any]:
        """Arguments of `allocate_ratios`; `centred` tells whether the factorizer adds biases."""
        return {**self.ratios, **self._shared, "centred": centred}

    @property
    def level2(self) -> dict[str, Any]:
        """Arguments of `allocate_ranks`."""
        return {**self.ranks, **self._shared}

    @property
    def block(self) -> dict[str, Any]:
        """Arguments of `compress_block`."""
        return {"rank_method": self.ranks["method"], "rank_options": self.ranks["options"], **self._shared}

    @property
    def _shared(self) -> dict[str, Any]:
        names = ("compression", "multiple", "channels", "latency")
        return {name: getattr(self, name) for name in names}


def both_levels(params: Parameters) -> Recipe:
    """The recipe of `ratios` and `ranks` alone, without pruning or search."""
    ratios = {"method": params.ratios.method, "options": params.ratios.options, "band": params.ratios.band}
    ranks = {"method": params.ranks.method, "options": params.ranks.options}
    return Recipe(params.ratios.compression, params.ranks.multiple, ratios, ranks, latency=params.ranks.latency)


def recipes(params: Parameters) -> dict[str, Recipe]:
    """Recipes of all baselines and, last, of the run's method, by name.

    Raises:
        UsageError: settings that exclude each other, or a baseline that equals the method or another baseline.
    """
    check_compatibility(params.flat(), "compress")
    both, searching = both_levels(params), None if params.search.method == "none" else params.search.method
    even: dict[str, Any] = {"method": UNIFORM, "options": {}}
    known = {
        "uniform": replace(both, ratios={**even, "band": None}, ranks=even),
        "level1": replace(both, ranks=even),
        "level2": replace(both, ratios={**even, "band": None}),
        "mgaa": both,
        "random": replace(both, search=RANDOM),
    }
    if method_traits("ranks", params.ranks.method).whole_model:  # its ranks do not depend on the ratios
        known["level2"] = both
    if params.method in params.evaluation.baselines:
        raise UsageError(f"evaluation.baselines has {params.method}, which is the method of the run: leave it out")
    found: dict[str, Recipe] = {name: known[name] for name in params.evaluation.baselines}
    found[params.method] = replace(both, channels=params.channels.pruning, search=searching)
    for (name, recipe), (other, same) in combinations(found.items(), 2):
        if recipe == same and (name, other) != (UNIFORM, params.method):
            raise UsageError(
                f"evaluation.baselines has {name}, which with these methods is the same as {other}: leave one of them out"
            )
    return found
