"""Checks right after the backbone is loaded, so that a wrong parameter does not cost a calibration.

They are not steps: they leave nothing behind and take milliseconds. The number of sequences is checked once the texts are tokenized.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from mgaa import levels
from mgaa.inputs.prompts import Prompts
from mgaa.search.space import space_of
from mgaa.statistics import gradients
from tasks.artifacts.calibration_input import sequences_of
from tasks.artifacts.files import backbone_matrices, backbone_record
from tasks.artifacts.ladders import target_of
from tasks.artifacts.specs import MethodSpec
from tasks.cache.artifact import Artifact, Store
from tasks.planning.recipes import Recipe


def preflight(
    store: Store,
    backbone: Artifact,
    factors: MethodSpec,
    recipes: Iterable[Recipe],
    *,
    inputs: str = "dense",
) -> None:
    """Refuse what the steps `allocate_ratios` and `allocate_ranks` would refuse after the calibration (`mgaa.levels`).

    Args:
        factors: the factorizer and its options.
        recipes: of all models.
        inputs: `statistics.inputs`.

    Raises:
        UsageError: an option is out of range, the compression out of reach, or a file for another model.
        InputError: a file that a method reads is missing or damaged, an FFN cannot be pruned, or a profile is of another model.
    """
    matrices = backbone_matrices(store, backbone)
    for recipe in recipes:
        levels.preflight(
            matrices,
            target_of(store, backbone, recipe.target),
            factors=(factors.method, factors.options),
            ratios=(recipe.ratios.method, recipe.ratios.options),
            ranks=(recipe.ranks.method, recipe.ranks.options),
            inputs=inputs,
        )


def preflight_search(
    store: Store,
    backbone: Artifact,
    factors: MethodSpec,
    space: Mapping[str, Any],
    multiple: int | str,
) -> None:
    """Refuse a search before anything is measured.

    Args:
        space: arguments of `mgaa.search.space_of`.

    Raises:
        UsageError: the space does not fit the model, or none of its points meets the budget.
    """
    matrices = backbone_matrices(store, backbone)
    levels.check_factorizer((factors.method, factors.options))
    ladders = levels.flat_ladders(matrices, levels.Target(space["compression"], multiple), centred=adds_biases(factors))
    space_of(matrices, **space).check(ladders)


def check_groups(store: Store, tokens: Artifact, factors: MethodSpec, groups: int) -> None:
    """Refuse fewer calibration sequences than groups if the factorizer depends on groups (`mgaa.levels`).

    Args:
        tokens: of the calibration.
        factors: the factorizer and its options.
        groups: `statistics.groups`.

    Raises:
        UsageError: there are fewer sequences than groups.
    """
    levels.check_groups((factors.method, factors.options), groups, len(sequences_of(store, tokens)))


def check_gradients(store: Store, backbone: Artifact, tokens: Artifact) -> None:
    """Refuse a backbone or calibration tokens without measurable gradients (`mgaa.statistics.gradients`).

    Raises:
        UsageError: the dtype, a part of the model, or the number of tokens.
    """
    record = backbone_record(store, backbone)
    gradients.check_parts(record["parts"])
    dtype: torch.dtype = getattr(torch, record["dtype"])
    gradients.check(backbone_matrices(store, backbone), [dtype], Prompts.of(sequences_of(store, tokens)).tokens)


def adds_biases(factors: MethodSpec) -> bool:
    """Whether low rank by this factorizer adds biases (`mgaa.levels`)."""
    return levels.adds_biases((factors.method, factors.options))
