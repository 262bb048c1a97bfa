"""Searches for ranks side by side: the Gaussian process and random search at the same number of evaluations, and MGAA, which needs none.

    python -m flows.search [section.key=value ...]

Every combination of the lists in the section `study` is a search by the Gaussian process, accompanied by a random search with the same
groups and seed. All share one calibration, one decomposition, the validation windows and the dense reference, and every trial is one
task and one child run in MLflow. The best allocation of each search is measured on the evaluation text, next to MGAA's, in pairs on the
same windows.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.search:search", show="flows.show_search:show"))

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from prefect import flow

from flows.command.runner import THREADS, limit_threads, open_run_store, worker_count
from flows.parts.evaluation import ModelEvaluation, windows_of
from flows.parts.inputs import factorizer_of, prepare_backbone, prepare_inputs
from flows.parts.models import slice_factors
from flows.parts.prepared import Prepared, measure_calibration
from flows.parts.questions import check_calibration_images
from flows.parts.rank_search import (
    candidate_windows,
    earlier_trials,
    measure_baseline,
    preflight_groups,
    prepare_context,
    run_search,
    with_groups,
)
from flows.prepare_data import prepare_texts
from tasks.cache.artifact import Artifact, Store
from tasks.cache.executions import Execution, record_executions
from tasks.config.compatibility import check_compatibility
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters
from tasks.planning.preflight import preflight
from tasks.planning.recipes import RANDOM, both_levels
from tasks.results.publish import Effort
from tasks.search.publish import FOLDER, publish_search
from tasks.search.study import Final, best_searches, table_of, write_study
from tasks.search.trials import Search
from tasks.steps.assemble import assemble
from tasks.steps.measure import measure
from tasks.tracking.run import Run, track_run


@flow(name="search", task_runner=THREADS, validate_parameters=False)
def search(parameters: Parameters) -> list[Final]:
    """Search ranks by every combination of the lists in `study`, by random search and by MGAA; publish tables, allocations and figures."""
    params, began = parameters, time.perf_counter()
    check_compatibility(params.flat(), "search")
    check_outputs(params, Output("the folder of searches", params.folder / FOLDER))
    store, factorizer = open_run_store(params), factorizer_of(params)
    with (
        track_run(
            params, "search", f"search of {len(search_kinds(params))} kinds and {len(params.study.seeds)} seeds"
        ) as run,
        record_executions(store) as executions,
    ):
        backbone = prepare_backbone(params, store)
        check_calibration_images(params, store, backbone)
        preflight(store, backbone, factorizer, [both_levels(params)])
        for groups in params.study.groups:
            preflight_groups(params, store, backbone, groups)
        texts = prepare_texts(params, store)
        inputs = prepare_inputs(params, store, backbone, texts, factorizers=[factorizer])
        candidate_windows(inputs)
        prepared = measure_calibration(inputs)
        context = prepare_context(prepared)
        for groups in params.study.groups:  # what does not fit is reported before the first trial
            earlier_trials(params, store, with_groups(context, groups))
        mgaa = measure_baseline(prepared, context)
        searches = [
            run_search(
                params,
                store,
                with_groups(context, groups),
                run,
                **search_arguments(method, groups, start, seed),
                nearest=mgaa.ranks,
            )
            for seed, (method, groups, start) in product(params.study.seeds, search_kinds(params))
        ]
        publish_search(params.folder, store, prepared.statistics, searches, mgaa)
        finals = measure_finals(prepared, searches, None if mgaa.trial is None else mgaa.ranks)
        if params.evaluation.tasks:
            finals = evaluate_finals(prepared, finals, searches)
        write_study(params.folder / FOLDER, store, finals)
        ran = executions.collect()
        log_study(run, store, prepared.tokens, searches, finals, ran, Effort.since(began, ran))
    return finals


def search_kinds(params: Parameters) -> list[tuple[str, int, str]]:
    """Method, groups and first trial of the searches with one seed."""
    by_groups = [
        [(RANDOM, groups, "random"), *(("gp", groups, start) for start in params.study.start)]
        for groups in params.study.groups
    ]
    return [kind for kinds in by_groups for kind in kinds]


def search_arguments(method: str, groups: int, start: str, seed: int) -> dict[str, Any]:
    """Arguments in which searches differ, and their name."""
    first = "-mgaa-first" if start == "mgaa" else ""
    return {"name": f"{method}-{groups}{first}-seed{seed}", "method": method, "start": start, "seed": seed}


def measure_finals(prepared: Prepared, searches: list[Search], mgaa: Artifact | None) -> list[Final]:
    """Measure the dense model, MGAA if possible, and the best allocation of every search on the evaluation text."""
    params, store, backbone = prepared.params, prepared.store, prepared.backbone
    tokens, windows = prepared.tokens["evaluation"], windows_of(params, "evaluation")
    wanted: list[tuple[str, Search | None, Artifact | None]] = [("dense", None, None)]
    wanted += [] if mgaa is None else [("mgaa", None, mgaa)]
    wanted += [(each.name, each, each.best) for each in searches]
    with limit_threads(worker_count(params)):
        futures = [
            measure.submit(
                store,
                backbone,
                tokens,
                prepared.spectra if ranks else [],
                ranks,
                windows=windows,
                device=prepared.device,
            )
            for _, _, ranks in wanted
        ]
        return [
            Final(name, found, ranks, future.result())
            for (name, found, ranks), future in zip(wanted, futures, strict=True)
        ]


def evaluate_finals(prepared: Prepared, finals: list[Final], searches: list[Search]) -> list[Final]:
    """Add zero-shot tasks, run on reloaded checkpoints, for the dense model, MGAA and one seed of every kind of search."""
    names = {"dense", "mgaa", *(each.name for each in best_searches(prepared.store, searches))}
    evaluation = ModelEvaluation.prepare(prepared)

    def model(ranks: Artifact | None) -> Artifact:
        if ranks is None:
            return prepared.backbone
        return assemble(prepared.store, prepared.backbone, slice_factors(prepared, ranks))

    return [
        replace(final, metrics=evaluation.metrics(model(final.ranks))) if final.name in names else final
        for final in finals
    ]


def log_study(
    run: Run,
    store: Store,
    tokens: dict[str, Artifact],
    searches: list[Search],
    finals: list[Final],
    executions: Sequence[Execution],
    effort: Effort,
) -> None:
    """Record the results of the study, and its files."""
    rows = table_of(store, finals)
    values = {f"perplexity/{row['search']}": row["perplexity"] for row in rows}
    values |= {f"objective/{row['search']}": row["objective"] for row in rows if row["objective"] is not None}

    run.log_study(
        store,
        artifacts={f"ranks.{each.name}": each.best for each in searches},
        tokens=tokens,
        numbers=values,
        effort=effort,
        executions=executions,
        places=[run.parameters.folder / FOLDER],
    )
