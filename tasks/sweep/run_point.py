"""A point of a sweep as one task: ratios, ranks and a measurement, from the spectra that all points of a factorizer share.

The three are cached steps that run without the engine, so the overhead of the engine is paid once per point, and a second sweep executes
nothing.
"""

import time
from collections.abc import Sequence
from typing import Any

from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import plain_task
from tasks.steps.allocate_ranks import allocate_ranks
from tasks.steps.allocate_ratios import allocate_ratios
from tasks.steps.measure import measure
from tasks.sweep.points import Point, PointMeasurement


@plain_task(name="run_point", task_run_name="{point.name}")
def run_point(
    store: Store,
    point: Point,
    backbone: Artifact,
    statistics: Artifact,
    spectra: Sequence[Artifact],
    centred: bool,
    tokens: Artifact,
    windows: dict[str, Any],
) -> PointMeasurement:
    """Compress in memory by the two levels of the point, and measure on `tokens`; `windows` are the other arguments of `measure`.

    Args:
        centred: whether the factorizer adds biases.
    """
    began = time.perf_counter()
    recipe = point.recipe
    ratios = allocate_ratios.fn(store, backbone, statistics, **recipe.level1(centred=centred))
    ranks = allocate_ranks.fn(store, backbone, spectra, [], ratios, **recipe.level2)
    measurement = measure.fn(store, backbone, tokens, spectra, ranks, **windows)
    return PointMeasurement(ratios, ranks, measurement, time.perf_counter() - began)
