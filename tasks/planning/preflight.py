"""The two levels rehearsed right after the backbone is loaded, so that a mistake in the parameters costs no calibration.

No step: it leaves nothing, and takes milliseconds. Whether there are sequences enough is known once the text is tokenized.
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
from tasks.artifacts.ladders import latency_of, pruning_of
from tasks.cache.artifact import Artifact, Store
from tasks.planning.recipes import Recipe


def preflight(
    store: Store,
    backbone: Artifact,
    factors: tuple[str, Mapping[str, Any]],
    recipes: Iterable[Recipe],
    *,
    inputs: str = "dense",
) -> None:
    """Refuse what `allocate_ratios` and `allocate_ranks` would refuse after the calibration (`mgaa.levels`).

    Args:
        factors: the factorizer and its options.
        recipes: of every model.
        inputs: whose activations are measured.

    Raises:
        UsageError: an option is out of range, the compression out of reach, or a file for another model.
        InputError: a file that a method reads is missing or damaged, an FFN cannot be pruned, or a profile is of another model.
    """
    matrices = backbone_matrices(store, backbone)
    for recipe in recipes:
        ratios, ranks, latency = recipe.ratios, recipe.ranks, latency_of(store, backbone, recipe.latency)
        levels.preflight(
            matrices,
            levels.Target(recipe.compression, recipe.multiple, pruning_of(recipe.channels), latency),
            factors=factors,
            ratios=(ratios["method"], {**ratios["options"], "band": ratios["band"]}),
            ranks=(ranks["method"], ranks["options"]),
            inputs=inputs,
        )


def preflight_search(
    store: Store,
    backbone: Artifact,
    factors: tuple[str, Mapping[str, Any]],
    space: Mapping[str, Any],
    multiple: int | str,
) -> None:
    """Refuse a search before anything is measured: a space that this model does not have, or a budget that none of its points can meet.

    Args:
        space: arguments of `mgaa.search.space_of`.

    Raises:
        UsageError: as said.
    """
    matrices = backbone_matrices(store, backbone)
    levels.check_factorizer(factors)
    ladders = levels.flat_ladders(matrices, levels.Target(space["compression"], multiple), centred=adds_biases(factors))
    space_of(matrices, **space).check(ladders)


def check_groups(store: Store, tokens: Artifact, factors: tuple[str, Mapping[str, Any]], groups: int) -> None:
    """Refuse fewer calibration sequences than groups where the factorizer depends on groups (`mgaa.levels`).

    Args:
        tokens: of the calibration.
        factors: the factorizer and its options.
        groups: how many were asked for.

    Raises:
        UsageError: there are fewer.
    """
    levels.check_groups(factors, groups, len(sequences_of(store, tokens)))


def check_gradients(store: Store, backbone: Artifact, tokens: Artifact) -> None:
    """Refuse a backbone or calibration tokens that no gradients can be measured with (`mgaa.statistics.gradients`).

    Raises:
        UsageError: as said.
    """
    record = backbone_record(store, backbone)
    gradients.check_parts(record["parts"])
    dtype: torch.dtype = getattr(torch, record["dtype"])
    gradients.check(backbone_matrices(store, backbone), [dtype], Prompts.of(sequences_of(store, tokens)).tokens)


def adds_biases(factors: tuple[str, Mapping[str, Any]]) -> bool:
    """Whether low rank by this factorizer adds biases (`mgaa.levels`)."""
    return levels.adds_biases(factors)
