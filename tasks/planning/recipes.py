"""How the models of a run are compressed: the run's method, and the baselines that it is compared with at the same budget.

A recipe is plain values, the arguments of the steps; models of a run differ in their recipes and in nothing else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from mgaa.errors import UsageError
from mgaa.methods import method_traits
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
        UsageError: a baseline that would be the method itself, or another baseline; or a search beside what it cannot be combined with.
    """
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
    check_search(params)
    check_recovery(params)
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


def check_search(params: Parameters) -> None:
    """Refuse a search beside what leaves it nothing to share or nothing to find, and its baselines without one.

    Raises:
        UsageError: as said.
    """
    if params.search.method == "none":
        if idle := [name for name in params.evaluation.baselines if name == RANDOM]:
            raise UsageError(
                f"evaluation.baselines has {idle[0]}, but search.method is none: leave it out, or take method=bolaco"
            )
        return
    check_objective(params, f"a search (search.method={params.search.method}) looks at parameters alone")
    for key, value, remedy in (
        ("statistics.inputs", params.statistics.inputs, "dense"),
        ("channels.method", params.channels.method, "none"),
        ("anchor.method", params.anchor.method, "none"),
    ):
        if value != remedy:
            raise UsageError(
                f"{key} is {value!r}, but the trials of a search (search.method={params.search.method}) are slices of one decomposition: "
                f"set {key}={remedy}, or search.method=none"
            )
    if params.method == "mgaa":
        raise UsageError(
            f"search.method is {params.search.method!r}, but method=mgaa searches nothing: take method=bolaco, or "
            "give the search a name of "
            "its own under methods"
        )
    if params.search.method == RANDOM and params.search.history is not None:
        raise UsageError(
            "search.history is set, but search.method is random, to which earlier trials say nothing: leave it out, or set search.method=gp"
        )
    if params.ranks.method == "file":
        raise UsageError(
            f"ranks.method is 'file', but search.method={params.search.method} finds the ranks itself: set search.method=none to "
            "use those of the file, or take another ranks.method"
        )


def check_objective(params: Parameters, why: str) -> None:
    """Refuse the objective latency where it would have no effect.

    Raises:
        UsageError: as said, for the reason given.
    """
    if params.ranks.objective != "parameters":
        raise UsageError(f"ranks.objective is {params.ranks.objective!r}, but {why}: set ranks.objective=parameters")


def check_recovery(params: Parameters) -> None:
    """Refuse a recovery that raises ranks which were chosen for being faster than dense.

    Raises:
        UsageError: as said.
    """
    if params.ranks.objective == "latency" and params.recovery.method == "lora" and params.recovery.tune == "product":
        raise UsageError(
            "recovery.tune is 'product', which raises every rank by that of LoRA, but ranks.objective=latency has chosen ranks that are "
            "faster than dense: set recovery.tune=factors, or ranks.objective=parameters"
        )
