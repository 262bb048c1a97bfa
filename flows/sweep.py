"""A sweep: many compressed models from one calibration per backbone and one decomposition per factorizer, in one table with intervals.

    python -m flows.sweep [section.key=value ...]

Every combination of the lists in the section `sweep` is a point; every point is one task on the task runner and one child run in
MLflow. Spectra are those of `flows.compress`, so the two share them; a point writes nothing but its ratios, its ranks and the
losses of its windows. A point that fails is a row with its error, and ends the flow with an error after everything else was written.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.sweep:sweep", show="flows.show_sweep:show"))

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture, as_completed

from flows.command.runner import THREADS, limit_threads, open_run_store, worker_count
from flows.parts.calibration import measure_statistics
from flows.parts.evaluation import windows_of
from flows.parts.inputs import Inputs, prepare_inputs
from flows.parts.prepared import plain_spectra, start_decomposition
from flows.parts.questions import check_calibration_images
from flows.parts.source import prepare_source
from flows.prepare_data import prepare_questions, prepare_texts
from mgaa.errors import MgaaError
from tasks.artifacts.files import MEASUREMENT, read_table
from tasks.artifacts.specs import QuestionSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.executions import Execution, record_executions
from tasks.config.compatibility import check_compatibility
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters
from tasks.config.sections.sweep import Source
from tasks.planning.preflight import adds_biases, preflight
from tasks.results.publish import Effort
from tasks.steps.load_backbone import load_backbone
from tasks.steps.measure import measure
from tasks.sweep.points import Outcome, Point, PointMeasurement, backbone_place, sweep_points
from tasks.sweep.publish import NAME, SUFFIXES, publish
from tasks.sweep.run_point import PointContext, run_point
from tasks.sweep.table import comparisons, point_metrics, point_row
from tasks.tracking.run import Run, track_run


@dataclass(frozen=True)
class SweepContext:
    """One backbone with everything that its points share; `dense` is its own measurement."""

    source: Source
    inputs: Inputs
    points: PointContext
    dense: Artifact


@flow(name="sweep", task_runner=THREADS, validate_parameters=False)
def sweep(parameters: Parameters) -> list[Outcome]:
    """Measure every combination of the lists in `sweep`; publish a table, a figure, and a run with a child for every point."""
    params, began = parameters, time.perf_counter()
    check_compatibility(params.flat(), "sweep")
    table = params.folder / NAME
    check_outputs(params, Output("the table of the sweep", table.parent, [table.name + suffix for suffix in SUFFIXES]))
    store = open_run_store(params)
    wanted = sweep_points(params.sweep)
    with track_run(params, "sweep", f"sweep of {len(wanted)} points") as run, record_executions(store) as executions:
        contexts = prepare_backbones(params, store, wanted)
        rows: dict[str, dict[str, Any]] = {}
        found: dict[str, Outcome] = {}
        for context in contexts:
            own = [point for point in wanted if point.backbone == context.source]
            for outcome in run_points(params, store, context, own):
                name, seconds = outcome.point.name, outcome.measured.seconds if outcome.measured else 0.0
                found[name] = outcome
                rows[name] = point_row(store, context.inputs.backbone, outcome, executions.collect())
                given = outcome.point.coordinates()
                run.log_child(name, given, point_metrics(rows[name]), seconds=seconds, error=outcome.error)
            for name, compared in comparisons(store, context.dense, [found[point.name] for point in own]).items():
                rows[name] |= compared
        outcomes = [found[point.name] for point in wanted]
        publish(params.folder, [rows[point.name] for point in wanted])
        ran = executions.collect()
        log_sweep(run, store, contexts, outcomes, ran, Effort.since(began, ran))
        raise_failures(outcomes)
    return outcomes


def prepare_backbones(params: Parameters, store: Store, wanted: Sequence[Point]) -> list[SweepContext]:
    """Prepare every backbone up to its statistics; errors in parameters or inputs are raised before a point is measured."""
    backbones: dict[Source, Artifact] = {}
    for source in params.sweep.backbone:
        given = prepare_source(store, source.source, source.revision, params.backbone.dtype)
        backbones[source] = load_backbone(store, **given, parts=params.backbone.parts)
    for point in wanted:
        preflight(store, backbones[point.backbone], point.factorizer, [point.recipe])
    texts, questions, split = prepare_texts(params, store), prepare_questions(params, store), params.sweep.split
    for backbone in backbones.values():
        check_calibration_images(params, store, backbone)
    inputs = {
        source: prepare_inputs(
            params,
            store,
            backbone,
            texts,
            questions,
            sections=("calibration", split),
            factorizers=[point.factorizer for point in wanted if point.backbone == source],
        )
        for source, backbone in backbones.items()
    }
    return [measure_dense(source, each) for source, each in inputs.items()]


def measure_dense(source: Source, inputs: Inputs) -> SweepContext:
    """Calibrate a backbone and measure it uncompressed."""
    params, store, backbone, device = inputs.params, inputs.store, inputs.backbone, inputs.device
    tokens, windows = inputs.tokens[params.sweep.split], windows_of(params, params.sweep.split)
    asked = QuestionSpec([each.name for each in params.data.questions], params.evaluation.answer_tokens)
    dense = measure(store, backbone, tokens, [], None, inputs.questions, windows=windows, asked=asked, device=device)
    statistics = measure_statistics(inputs)
    plain = plain_spectra(inputs, params.sweep.ranks)
    points = PointContext(backbone, statistics, plain, tokens, inputs.questions, windows, asked, device)
    return SweepContext(source, inputs, points, dense)


def run_points(params: Parameters, store: Store, context: SweepContext, wanted: Sequence[Point]) -> Iterator[Outcome]:
    """Measure the points of one backbone, in the order in which they end; a failed decomposition fails all points of its factorizer."""
    groups = [(factors, [*group]) for factors, group in groupby(wanted, key=lambda point: point.factors)]
    with limit_threads(worker_count(params)):
        decomposing = [
            start_decomposition(context.inputs, context.points.statistics, group[0].factorizer) for _, group in groups
        ]
        running: dict[PrefectFuture[PointMeasurement], Point] = {}
        for futures, (_, group) in zip(decomposing, groups, strict=True):
            spectra: list[Any] = futures.result(raise_on_failure=False)
            if errors := [each for each in spectra if isinstance(each, BaseException)]:
                yield from (Outcome(point, None, errors[0]) for point in group)
                continue
            centred = adds_biases(group[0].factorizer)
            running |= {run_point.submit(store, point, context.points, spectra, centred): point for point in group}
        for future in as_completed([*running]):
            result: Any = future.result(raise_on_failure=False)
            failed = isinstance(result, BaseException)
            yield Outcome(running[future], None, result) if failed else Outcome(running[future], result, None)


def log_sweep(
    run: Run,
    store: Store,
    contexts: Sequence[SweepContext],
    outcomes: Sequence[Outcome],
    executions: Sequence[Execution],
    effort: Effort,
) -> None:
    """Record what all points have in common, and the files."""
    measurements = [each.measured.measurement for each in outcomes if each.measured is not None]
    values = {"points": len(outcomes), "points/failed": len(outcomes) - len(measurements)}
    for context in contexts:
        name = backbone_place(context.source).replace("/", "_")
        values[f"perplexity/dense/{name}"] = read_table(store, context.dense, MEASUREMENT)["perplexity"]

    run.log_study(
        store,
        artifacts={"dense": [context.dense for context in contexts], "measurement": measurements},
        tokens=contexts[0].inputs.tokens,
        numbers=values,
        effort=effort,
        executions=executions,
        places=[run.parameters.folder / f"{NAME}{suffix}" for suffix in SUFFIXES],
    )


def raise_failures(outcomes: Sequence[Outcome]) -> None:
    """Raise one error that names the failed points with their errors."""
    failed = [(outcome.point.name, outcome.error) for outcome in outcomes if outcome.error is not None]
    if failed:
        messages = dict.fromkeys(str(error) for _, error in failed)
        told = {message: ", ".join(name for name, error in failed if str(error) == message) for message in messages}
        _, first = failed[0]
        kind = type(first) if isinstance(first, MgaaError) else RuntimeError
        raise kind(
            f"{len(failed)} of {len(outcomes)} points failed, the others are in {NAME}.csv. "
            + "; ".join(f"{names}: {message}" for message, names in told.items())
        ) from first
