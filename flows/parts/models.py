"""The part of the flows that compresses: from a recipe to the factors of a model, all blocks together or one behind the other."""

from collections.abc import Sequence
from typing import Any

from prefect import unmapped

from flows.parts.calibration import calibration_settings
from flows.parts.inputs import factorizer_of
from flows.parts.prepared import Prepared
from tasks.artifacts.specs import AnchorSpec
from tasks.cache.artifact import Artifact
from tasks.planning.preflight import adds_biases
from tasks.planning.recipes import Recipe
from tasks.steps.allocate_ranks import allocate_ranks
from tasks.steps.allocate_ratios import allocate_ratios
from tasks.steps.anchor_block import anchor_block
from tasks.steps.collect_ranks import collect_ranks
from tasks.steps.compress_block import compress_block
from tasks.steps.factorize import factorize
from tasks.steps.score_channels import score_channels

Artifacts = list[Artifact]


def compress_model(prepared: Prepared, recipe: Recipe) -> tuple[Artifact, Artifact, Artifacts, Artifacts]:
    """Ratios, ranks, channel scores and factors of a model; sequential compression keeps scores with the factors."""
    store, backbone, statistics = prepared.store, prepared.backbone, prepared.statistics
    centred = adds_biases(factorizer_of(prepared.params))
    ratios = allocate_ratios(
        store,
        backbone,
        statistics,
        ratios=recipe.ratios,
        target=recipe.target,
        centred=centred,
        residual=recipe.residual,
    )
    if not prepared.spectra:
        factors = compress_sequentially(prepared, recipe, ratios)
        return ratios, collect_ranks(store, factors), [], factors
    scores = Artifacts()
    if recipe.target.channels is not None:
        scores = score_channels.map(statistics=unmapped(statistics), **mapped_arguments(prepared)).result()
    measured = prepared.spectra, scores, ratios, prepared.plain
    ranks = allocate_ranks(store, backbone, *measured, ranks=recipe.ranks, target=recipe.target)
    return ratios, ranks, scores, slice_factors(prepared, ranks, scores)


def mapped_arguments(prepared: Prepared) -> dict[str, Any]:
    """Arguments of the steps that are mapped over the blocks."""
    return {
        "store": unmapped(prepared.store),
        "backbone": unmapped(prepared.backbone),
        "block": prepared.blocks,
        "device": prepared.device,
    }


def slice_factors(prepared: Prepared, ranks: Artifact, scores: Sequence[Artifact] = ()) -> Artifacts:
    """The factors of all blocks at some ranks: slices of the spectra, or fitted to the dense model."""
    if prepared.params.anchor.anchoring is not None:
        return anchor_factors(prepared, ranks)
    given: dict[str, Any] = {"scores": scores or unmapped(None), "ranks": unmapped(ranks)}
    found: Artifacts = factorize.map(spectra=prepared.spectra, **given, **mapped_arguments(prepared)).result()
    return found


def anchor_factors(prepared: Prepared, ranks: Artifact) -> Artifacts:
    """The factors of all blocks at some ranks, each fitted to the dense model behind those before it."""
    from mgaa.anchoring.fitting import Anchoring
    from mgaa.anchoring.refinement import Refinement

    params, factors = prepared.params, Artifacts()
    anchoring, tuned = Anchoring(**params.anchor.anchoring or {}), params.refinement.refinement
    fit = AnchorSpec(anchoring, None if tuned is None else Refinement(**tuned), calibration_settings(params))
    for block in prepared.blocks:
        step = anchor_block(
            prepared.store,
            prepared.backbone,
            prepared.tokens["calibration"],
            prepared.statistics,
            ranks,
            factors[:block],
            block=block,
            factors=factorizer_of(params),
            fit=fit,
            device=prepared.device,
        )
        factors.append(step)
    return factors


def compress_sequentially(prepared: Prepared, recipe: Recipe, ratios: Artifact) -> Artifacts:
    """The factors of all blocks, each measured behind the compressed ones before it."""
    params, factors = prepared.params, Artifacts()
    for block in prepared.blocks:
        step = compress_block(
            prepared.store,
            prepared.backbone,
            prepared.tokens["calibration"],
            ratios,
            factors[:block],
            block=block,
            factors=factorizer_of(params),
            ranks=recipe.ranks,
            target=recipe.target,
            calibration=calibration_settings(params),
            device=prepared.device,
        )
        factors.append(step)
    return factors
