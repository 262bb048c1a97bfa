"""Recipes of the models of a run: the method, and its baselines at the same budget.

A recipe consists of plain values, the arguments of steps; the models of a run differ in nothing but their recipes.
"""

from dataclasses import dataclass, replace
from itertools import combinations

from mgaa.errors import UsageError
from mgaa.methods import method_traits
from tasks.artifacts.specs import MethodSpec, TargetSpec
from tasks.config.compatibility import check_compatibility
from tasks.config.parameters import Parameters
from tasks.config.sections.methods import Map, Ranks

UNIFORM = "uniform"
"""The baseline of both levels."""
RANDOM = "random"
"""The baseline of searches."""


@dataclass(frozen=True)
class Recipe:
    """Arguments of the steps that make one model.

    Attributes:
        ratios, ranks: level 1, with `band` among its options, and level 2.
        residual: whether level 1 compares the stream before and after a sublayer, or the stream before it and what it adds.
        search: method of the search that finds the ranks instead of both levels; None without one.
    """

    target: TargetSpec
    ratios: MethodSpec
    ranks: MethodSpec
    residual: bool = True
    search: str | None = None


def recipe_of(compression: float, ratios: Map, ranks: Ranks) -> Recipe:
    """The recipe of two levels, without pruning or search."""
    target = TargetSpec(compression, ranks.multiple, latency=ranks.latency, spectrum=ranks.spectrum)
    level1 = MethodSpec(ratios.method, {**ratios.options, "band": ratios.band})
    return Recipe(target, level1, MethodSpec(ranks.method, ranks.options), ratios.residual)


def both_levels(params: Parameters) -> Recipe:
    """The recipe of `ratios` and `ranks` alone, without pruning or search."""
    return recipe_of(params.ratios.compression, params.ratios, params.ranks)


def recipes(params: Parameters) -> dict[str, Recipe]:
    """Recipes of all baselines and, last, of the run's method, by name.

    Raises:
        UsageError: settings that exclude each other, or a baseline that equals the method or another baseline.
    """
    check_compatibility(params.flat(), "compress")
    both, searching = both_levels(params), None if params.search.method == "none" else params.search.method
    even1, even2 = MethodSpec(UNIFORM, {"band": None}), MethodSpec(UNIFORM, {})
    known = {
        "uniform": replace(both, ratios=even1, ranks=even2),
        "level1": replace(both, ranks=even2),
        "level2": replace(both, ratios=even1),
        "mgaa": both,
        "random": replace(both, search=RANDOM),
    }
    if method_traits("ranks", params.ranks.method).whole_model:  # its ranks do not depend on the ratios
        known["level2"] = both
    if params.method in params.evaluation.baselines:
        raise UsageError(f"evaluation.baselines has {params.method}, which is the method of the run: leave it out")
    found: dict[str, Recipe] = {name: known[name] for name in params.evaluation.baselines}
    target = replace(both.target, channels=params.channels.pruning)
    found[params.method] = replace(both, target=target, search=searching)
    for (name, recipe), (other, same) in combinations(found.items(), 2):
        if recipe == same and (name, other) != (UNIFORM, params.method):
            raise UsageError(
                f"evaluation.baselines has {name}, which with these methods is the same as {other}: leave one of them out"
            )
    return found
