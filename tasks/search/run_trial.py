"""A trial of a search as one task: the ranks of a point and their objective, from the spectra that all trials share.

Both are cached steps that run without the engine, so the overhead of the engine is paid once per trial, and a search that is started again
repeats only the trials that failed. Only the values of a search decide what is tried next, never the time at which a trial ends. A
non-finite value is a property of the point; any other error ends the search, which resumes from there when it is started again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mgaa.errors import NumericalError
from tasks.cache.artifact import Artifact, Store
from tasks.cache.executions import forget_failure
from tasks.cache.step import plain_task
from tasks.steps.allocate_point import allocate_point
from tasks.steps.try_ranks import try_ranks


@dataclass(frozen=True)
class SearchContext:
    """Inputs and settings that all trials of a search share.

    Attributes:
        windows: validation tokens.
        reference: predictions of the dense model on them; None without a divergence.
        space: arguments of `mgaa.search.space_of`.
        divergence: its weight in the objective.
    """

    backbone: Artifact
    spectra: Sequence[Artifact]
    windows: Artifact
    reference: Artifact | None
    space: dict[str, Any]
    multiple: int | str
    divergence: float
    batch_size: int
    device: str


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial and its duration in seconds; `error` says why there is none."""

    ranks: Artifact | None
    trial: Artifact | None
    seconds: float
    error: Exception | None = None


@plain_task(name="run_trial", task_run_name="{name}")
def run_trial(store: Store, name: str, point: list[float], context: SearchContext, threads: int) -> TrialResult:
    """Measure one point on `threads` cores; a loss or factor that is not finite is a result too."""
    import torch

    began = time.perf_counter()
    torch.set_num_threads(threads)
    try:
        ranks = allocate_point.fn(
            store, context.backbone, context.spectra, point=point, space=context.space, multiple=context.multiple
        )
        trial = measure_trial(try_ranks.fn, store, context, ranks)
    except NumericalError as error:
        forget_failure(error)
        return TrialResult(None, None, time.perf_counter() - began, error)
    return TrialResult(ranks, trial, time.perf_counter() - began)


def measure_trial(step: Callable[..., Artifact], store: Store, context: SearchContext, ranks: Artifact) -> Artifact:
    """The objective at these ranks, by the step `try_ranks` with its engine or without."""
    return step(
        store,
        context.backbone,
        context.windows,
        context.reference,
        context.spectra,
        ranks,
        divergence=context.divergence,
        batch_size=context.batch_size,
        device=context.device,
    )
