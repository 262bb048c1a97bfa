"""Choice of the next points of the unit cube, given the trials so far.

`gp` is the optimiser of Bolaco (arXiv 2405.10616, 3.3): a Gaussian process with a Matern-5/2 kernel and a length scale for each variable,
fitted by maximum a posteriori, and the point of largest expected improvement; for several points at a time its batch form (the `GPSampler`
of optuna, with `logEI` and `qLogEI`). `random` draws points: the baseline that every search has to beat at the same number of evaluations.

A proposal is a function of only the seed, the number of the trial and the trials before it: there is no state to save, and a search that
was interrupted proposes the same points again. Point k of `random` and the first points of `gp` are the same for equal seeds.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mgaa.errors import UsageError

METHODS = ("gp", "random")
Point = list[float]


@dataclass(frozen=True)
class Found:
    """Results of the trials so far.

    Attributes:
        points, values: of the measured trials, in order.
        failed: points of the failed trials. The Gaussian process treats them as the worst measured value, to search elsewhere; a failed
            trial is never the best.
    """

    points: Sequence[Point] = field(default_factory=list)
    values: Sequence[float] = field(default_factory=list)
    failed: Sequence[Point] = field(default_factory=list)


def propose(
    method: str,
    found: Found,
    *,
    dimensions: int,
    first: int,
    count: int = 1,
    seed: int = 0,
    initial: int = 3,
    start: Point | None = None,
) -> list[Point]:
    """Propose the points of the trials `first, ..., first + count - 1`, to be measured at once.

    Args:
        method: `gp` or `random`.
        found: the trials so far.
        initial: number of random points before `gp` uses the trials.
        start: first point to try, in place of a random one.

    Raises:
        UsageError: the method is unknown, or optuna is missing.
    """
    require_method(method)
    points: list[Point] = []
    for number in range(first, first + count):
        if number == 0 and start is not None:
            points.append([*start])
        elif method == "random" or number < initial or not found.values:
            points.append(draw_point(seed, number, dimensions))
        else:
            points.append(_propose_improvement(found, points, dimensions, seed, number))
    return points


def draw_point(seed: int, number: int, dimensions: int) -> Point:
    """Draw point `number` of the random search with this seed, uniform in the unit cube."""
    point: Point = np.random.default_rng([seed, number]).random(dimensions).tolist()
    return point


def require_method(method: str) -> None:
    """Refuse a method that does not exist, or whose package is missing.

    Raises:
        UsageError: it does not exist, or a package is missing.
    """
    if method not in METHODS:
        raise UsageError(f"search.method is {method!r}, expected one of {', '.join(METHODS)}")
    for package in ("optuna", "scipy"):  # optuna's sampler needs scipy, but does not declare it
        if method == "gp" and importlib.util.find_spec(package) is None:
            raise UsageError(f"search.method=gp needs {package}, which is not installed: pip install 'mgaa[search]'")


def _propose_improvement(found: Found, running: Sequence[Point], dimensions: int, seed: int, number: int) -> Point:
    """Return the point of largest expected improvement over the best value, given the points that are being measured."""
    import optuna

    cube: dict[str, Any] = {str(index): optuna.distributions.FloatDistribution(0.0, 1.0) for index in range(dimensions)}
    entropy = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.GPSampler(seed=entropy, n_startup_trials=1, deterministic_objective=True)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(sampler=sampler)
    finally:
        optuna.logging.set_verbosity(verbosity)
    values = _clip_outliers(found.values)
    measured = zip(found.points, values, strict=True)
    for point, value in (*measured, *((point, max(values)) for point in found.failed)):
        study.add_trial(optuna.create_trial(params=_named(point), distributions=cube, value=value))
    waiting = optuna.trial.TrialState.RUNNING
    for point in running:
        study.add_trial(optuna.create_trial(params=_named(point), distributions=cube, state=waiting))
    asked = study.ask(cube).params
    return [float(asked[str(index)]) for index in range(dimensions)]


def _clip_outliers(values: Sequence[float]) -> list[float]:
    """Clip values far above the rest to 10 times the distance between the least and the median above the median.

    Our choice: the Gaussian process standardises the values, so one allocation that breaks the model, with a perplexity of thousands, would
    make all others look the same.
    """
    least, median = min(values), float(np.median(values))
    return [min(value, median + 10 * (median - least)) if median > least else value for value in values]


def _named(point: Point) -> dict[str, float]:
    return {str(index): value for index, value in enumerate(point)}
