"""How the models of a run are compressed: the run's method, and the baselines that it is compared with at the same budget.

A recipe is plain values, the arguments of the steps; models of a run differ in their recipes and in nothing else.
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
"""The method of both levels that the others are compared with."""
RANDOM = "random"
"""The search that the others are compared with."""


@dataclass(frozen=True)
class Recipe:
    """One model.

    Attributes:
        compression, multiple: the fraction of linear parameters to remove, and the step between ranks.
        ratios: level 1: `method`, `options`, `band`.
        ranks: level 2: `method`, `options`.
        channels: how FFNs are pruned; null where they are factorized.
        search: the method of the search that finds the ranks in the place of both levels; null where they do.
        latency: the profile by which ranks are faster than dense, and at how many tokens; null where parameters are the objective.
    """

    compression: float
    multiple: int | str
    ratios: Mapping[str, Any]
    ranks: Mapping[str, Any]
    channels: Mapping[str, Any] | None = None
    search: str | None = None
    latency: Mapping[str, Any] | None = None

    def level1(self, *, centred: bool) -> dict[str, Any]:
        """Arguments of `allocate_ratios`; `centred` says whether the factorizer adds biases."""
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
    """The recipe of every baseline and, last, of the run's method, by name.

    Raises:
        UsageError: a baseline that would be the method itself, or another baseline; or settings that exclude each other.
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
    if method_traits("ranks", params.ranks.method).whole_model:  # whatever the ratios, the ranks are the same
        known["level2"] = both
    if params.method in params.evaluation.baselines:
        raise UsageError(f"evaluation.baselines has {params.method}, which is the run's method itself: leave it out")
    found: dict[str, Recipe] = {name: known[name] for name in params.evaluation.baselines}
    found[params.method] = replace(both, channels=params.channels.pruning, search=searching)
    for (name, recipe), (other, same) in combinations(found.items(), 2):
        if recipe == same and (name, other) != (UNIFORM, params.method):
            raise UsageError(
                f"evaluation.baselines has {name}, which with these methods is the same as {other}: leave one of them out"
            )
    return found
