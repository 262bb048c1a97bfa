"""How the models of a run are compressed: the run's method, and the baselines that it is compared with at the same budget.

A recipe is plain values, the arguments of the steps; models of a run differ in their recipes and in nothing else.
"""

from dataclasses import dataclass, replace
from itertools import combinations

from mgaa.errors import UsageError
from tasks.artifacts.specs import MethodSpec, TargetSpec
from tasks.config.method_options import has_trait
from tasks.config.parameters import Parameters
from tasks.config.sections.methods import Map, Ranks

UNIFORM = "uniform"
"""The method of both levels that the others are compared with."""
RANDOM = "random"
"""The search that the others are compared with."""


@dataclass(frozen=True)
class Recipe:
    """One model.

    Attributes:
        ratios, ranks: level 1, with `band` among its options, and level 2.
        search: the method of the search that finds the ranks in the place of both levels; null where they do.
    """

    target: TargetSpec
    ratios: MethodSpec
    ranks: MethodSpec
    search: str | None = None


def recipe_of(compression: float, ratios: Map, ranks: Ranks) -> Recipe:
    """The recipe of two levels, without pruning or search."""
    target = TargetSpec(compression, ranks.multiple, latency=ranks.latency)
    level1 = MethodSpec(ratios.method, {**ratios.options, "band": ratios.band})
    return Recipe(target, level1, MethodSpec(ranks.method, ranks.options))


def both_levels(params: Parameters) -> Recipe:
    """The recipe of `ratios` and `ranks` alone, without pruning or search."""
    return recipe_of(params.ratios.compression, params.ratios, params.ranks)


def recipes(params: Parameters) -> dict[str, Recipe]:
    """The recipe of every baseline and, last, of the run's method, by name.

    Raises:
        UsageError: a baseline that would be the method itself, or another baseline; or a search beside what it cannot be combined with.
    """
    both, searching = both_levels(params), None if params.search.method == "none" else params.search.method
    even1, even2 = MethodSpec(UNIFORM, {"band": None}), MethodSpec(UNIFORM, {})
    known = {
        "uniform": replace(both, ratios=even1, ranks=even2),
        "level1": replace(both, ranks=even2),
        "level2": replace(both, ratios=even1),
        "mgaa": both,
        "random": replace(both, search=RANDOM),
    }
    if has_trait("ranks", params.ranks.method, "GLOBAL"):  # whatever the ratios, the ranks are the same
        known["level2"] = both
    check_search(params)
    check_recovery(params)
    if params.method in params.evaluation.baselines:
        raise UsageError(f"evaluation.baselines has {params.method}, which is the run's method itself: leave it out")
    found: dict[str, Recipe] = {name: known[name] for name in params.evaluation.baselines}
    target = replace(both.target, channels=params.channels.pruning)
    found[params.method] = replace(both, target=target, search=searching)
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
