"""Searches for ranks side by side: the Gaussian process and random search at the same number of evaluations, and MGAA, which needs none.

    python -m flows.search [section.key=value ...]

Every combination of the lists in the section `study` is a search by the Gaussian process; beside it stands random search with the same
groups and seed. All share one calibration, one decomposition, the validation windows and the dense reference, and every trial is one
task and one child run in MLflow. The best allocation of each search is measured on the evaluation text, next to MGAA's, in pairs on the
same windows.
"""

import sys
import time
from dataclasses import replace
from itertools import product
from typing import Any

from prefect import flow

from flows.command.runner import THREADS, opened, share_of_cores, workers
from flows.compress import Bench, backbone_of
from flows.parts.calibration import calibrated
from flows.parts.measurement import device, measurement
from flows.parts.questions import check_sight
from flows.parts.rank_search import beside, candidates_of, earlier_of, prepared_ground, rehearsed, run_search, within
from flows.prepare_data import prepared_texts, prepared_tokens
from mgaa.errors import UsageError
from tasks.cache.artifact import Artifact, Store
from tasks.cache.executions import Executions, recording
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters
from tasks.planning.preflight import check_groups, rehearse
from tasks.planning.recipes import RANDOM, both_levels, check_search
from tasks.results.publish import Effort
from tasks.search.publish import FOLDER, publish
from tasks.search.run_trial import Ground
from tasks.search.study import Final, chosen, table_of, write
from tasks.search.trials import Search
from tasks.steps.assemble import assemble
from tasks.steps.evaluate import evaluate
from tasks.steps.measure import measure
from tasks.tracking.run import Run, tracked


@flow(name="search", task_runner=THREADS, validate_parameters=False)
def search(parameters: Parameters) -> list[Final]:
    """Search ranks by every combination of the lists in `study`, beside random search and MGAA; publish tables, allocations and figures."""
    p, began = parameters, time.perf_counter()
    check(p)
    check_outputs(p, Output("the folder of searches", p.folder / FOLDER))
    store, where = opened(p), device(p)
    factorizer = p.factors.method, p.factors.options
    with (
        tracked(p, "search", f"search of {len(kinds(p))} kinds and {len(p.study.seeds)} seeds") as run,
        recording(store) as executions,
    ):
        backbone = backbone_of(p, store)
        check_sight(p, store, backbone)
        rehearse(store, backbone, factorizer, [both_levels(p)], gradients=p.statistics.gradients)
        for groups in p.study.groups:
            rehearsed(p, store, backbone, groups)
        texts = prepared_texts(p, store)
        tokens = prepared_tokens(p, store, backbone, texts)
        candidates_of(p, store, backbone, texts)
        check_groups(store, tokens["calibration"], factorizer, p.statistics.groups)
        statistics = calibrated(p, store, backbone, tokens["calibration"], where)
        bench = Bench(p, store, backbone, tokens["calibration"], statistics, where)
        spectra = bench.spectra()
        ground = prepared_ground(p, store, backbone, texts, spectra, where)
        for groups in p.study.groups:
            earlier_of(p, store, within(ground, groups))  # what does not fit is said before the first trial
        mgaa = beside(p, store, ground, statistics)
        searches = [
            run_search(p, store, within(ground, groups), run, **named(method, groups, start, seed), nearest=mgaa.ranks)
            for seed, (method, groups, start) in product(p.study.seeds, kinds(p))
        ]
        publish(p.folder, store, statistics, searches, mgaa)
        finals = measured(p, store, ground, tokens["evaluation"], searches, None if mgaa.trial is None else mgaa.ranks)
        if p.evaluation.tasks:
            finals = evaluated(bench, finals, spectra, searches, **measurement(p, store, texts, tokens))
        write(p.folder / FOLDER, store, finals)
        log(run, store, tokens, searches, finals, executions, Effort.since(began, executions))
    return finals


def check(p: Parameters) -> None:
    """Refuse a study without a search, or beside what a search cannot be combined with.

    Raises:
        UsageError: as said.
    """
    if p.search.method != "gp":
        raise UsageError(
            f"search.method is {p.search.method!r}, expected gp, which a study compares with random search: add method=bolaco"
        )
    check_search(p)
    if p.recovery.method != "none":
        raise UsageError(
            f"recovery.method is {p.recovery.method!r}, but a study compares allocations: set recovery.method=none, or recover one "
            "model (flows.compress)"
        )


def kinds(p: Parameters) -> list[tuple[str, int, str]]:
    """Method, groups and first trial of the searches of a seed."""
    by_groups = [
        [(RANDOM, groups, "random"), *(("gp", groups, start) for start in p.study.start)] for groups in p.study.groups
    ]
    return [kind for kinds in by_groups for kind in kinds]


def named(method: str, groups: int, start: str, seed: int) -> dict[str, Any]:
    """The arguments by which searches differ, and their name."""
    first = "-mgaa-first" if start == "mgaa" else ""
    return {"name": f"{method}-{groups}{first}-seed{seed}", "method": method, "start": start, "seed": seed}


def measured(
    p: Parameters, store: Store, ground: Ground, evaluation: Artifact, searches: list[Search], mgaa: Artifact | None
) -> list[Final]:
    """The dense model, MGAA if it could be measured, and the best allocation of every search on the evaluation text."""
    given = p.data.evaluation
    shared: dict[str, Any] = {"length": given.length, "stride": given.stride, "batch_size": p.evaluation.batch_size}
    shared["device"] = ground.measured["device"]
    wanted: list[tuple[str, Search | None, Artifact | None]] = [("dense", None, None)]
    wanted += [] if mgaa is None else [("mgaa", None, mgaa)]
    wanted += [(each.name, each, each.best) for each in searches]
    with share_of_cores(workers(p)):
        futures = [
            measure.submit(store, ground.backbone, evaluation, ground.spectra if ranks else [], ranks, **shared)
            for _, _, ranks in wanted
        ]
        return [
            Final(name, found, ranks, future.result())
            for (name, found, ranks), future in zip(wanted, futures, strict=True)
        ]


def evaluated(
    bench: Bench, finals: list[Final], spectra: list[Artifact], searches: list[Search], **how: Any
) -> list[Final]:
    """The same with zero-shot tasks, read back from checkpoints, for the dense model, MGAA and one seed of every kind of search."""
    names = {"dense", "mgaa", *(each.name for each in chosen(bench.store, searches))}

    def model(ranks: Artifact | None) -> Artifact:
        if ranks is None:
            return bench.backbone
        return assemble(bench.store, bench.backbone, bench.sliced(spectra, ranks))

    return [
        replace(final, metrics=evaluate(bench.store, model(final.ranks), **how)) if final.name in names else final
        for final in finals
    ]


def log(
    run: Run,
    store: Store,
    tokens: dict[str, Artifact],
    searches: list[Search],
    finals: list[Final],
    executions: Executions,
    effort: Effort,
) -> None:
    """Record what the study found, and its files."""
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


if __name__ == "__main__":
    from flows.command.cli import main
    from flows.show_search import show

    sys.exit(main(search, show=show))
