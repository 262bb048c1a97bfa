"""A point of a sweep as one task: ratios, ranks and a measurement, from the spectra that all points of a factorizer share.

The three are cached steps that run without the engine, so the overhead of the engine is paid once per point, and a second sweep executes
nothing.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.artifacts.specs import QuestionSpec, WindowSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import plain_task
from tasks.steps.allocate_ranks import allocate_ranks
from tasks.steps.allocate_ratios import allocate_ratios
from tasks.steps.measure import measure
from tasks.sweep.points import Point, PointMeasurement


@dataclass(frozen=True)
class PointContext:
    """Inputs that the points of a backbone share, except the spectra.

    Attributes:
        tokens: evaluation tokens for the perplexity.
        plain: energies of the plain weights, where a point compares these.
        questions, asked: questions about images, and which of them are asked; None without such questions.
    """

    backbone: Artifact
    statistics: Artifact
    plain: Sequence[Artifact]
    tokens: Artifact
    questions: Artifact | None
    windows: WindowSpec
    asked: QuestionSpec
    device: str


@plain_task(name="run_point", task_run_name="{point.name}")
def run_point(
    store: Store, point: Point, context: PointContext, spectra: Sequence[Artifact], centred: bool
) -> PointMeasurement:
    """Compress in memory by the two levels of the point, and measure the result.

    Args:
        centred: whether the factorizer adds biases.
    """
    began = time.perf_counter()
    recipe, backbone = point.recipe, context.backbone
    ratios = allocate_ratios.fn(
        store,
        backbone,
        context.statistics,
        ratios=recipe.ratios,
        target=recipe.target,
        centred=centred,
        residual=recipe.residual,
    )
    plain = context.plain if recipe.target.spectrum == "plain" else []
    ranks = allocate_ranks.fn(store, backbone, spectra, [], ratios, plain, ranks=recipe.ranks, target=recipe.target)
    measurement = measure.fn(
        store,
        backbone,
        context.tokens,
        spectra,
        ranks,
        context.questions,
        windows=context.windows,
        asked=context.asked,
        device=context.device,
    )
    return PointMeasurement(ratios, ranks, measurement, time.perf_counter() - began)
