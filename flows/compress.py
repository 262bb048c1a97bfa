"""The main flow, from a backbone and a compression target to a compressed checkpoint, its metrics and its record.

    python -m flows.compress [section.key=value ...]

backbone -> texts -> tokens -> statistics -> spectra -> ratios -> ranks -> factors -> checkpoint -> metrics

Every arrow is a cached step that takes and returns artifacts, so a second run executes nothing, and another target starts at `ratios`.
The method and its baselines differ in their recipes only: statistics, spectra and budget are the same. A search (`search.method`) replaces
both levels and finds ranks by trials on validation text. If `statistics.inputs` is `compressed`, the stages from statistics to factors are
one step per block, calibrated on the output of the compressed blocks before it; with anchoring (`anchor.method`), the stages from ranks to
factors are. `recovery` fine-tunes the checkpoint of the method.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.compress:compress", show="flows.show:show"))

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from prefect import flow

from flows.command.runner import THREADS, open_run_store
from flows.parts.continuations import check_chats, sample_continuations
from flows.parts.evaluation import ModelEvaluation
from flows.parts.inputs import factorizer_of, prepare_backbone, prepare_inputs
from flows.parts.models import compress_model, slice_factors
from flows.parts.prepared import Prepared, measure_calibration
from flows.parts.questions import check_calibration_images
from flows.parts.rank_search import candidate_windows, preflight_groups, search_ranks
from flows.parts.recovery import examples_of, plan_of, recover_model
from flows.prepare_data import prepare_questions, prepare_texts
from tasks.cache.artifact import Artifact
from tasks.cache.executions import keys_by, record_executions
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters
from tasks.planning.preflight import preflight
from tasks.planning.recipes import Recipe, recipes
from tasks.record.run_record import Span, keep_record
from tasks.results.publish import DENSE, UNRECOVERED, Compressed, Effort, Results, outputs, publish_results
from tasks.search.publish import FOLDER as SEARCHES
from tasks.search.trials import Search
from tasks.steps.assemble import assemble
from tasks.steps.draw_figures import draw_figures
from tasks.tracking.run import track_run


@flow(name="compress", task_runner=THREADS, validate_parameters=False)
def compress(parameters: Parameters) -> Results:
    """Compress `backbone.source` by the method and by every baseline, evaluate all of them, and publish the results."""
    params, began, started = parameters, time.perf_counter(), datetime.now(UTC)
    check_outputs(params, *outputs(params), *searches_of(params))
    store = open_run_store(params)
    with track_run(params) as run, record_executions(store) as executions:
        wanted, plan = recipes(params), plan_of(params)
        backbone = prepare_backbone(params, store)
        warning = check_calibration_images(params, store, backbone)
        check_chats(params, store, backbone)
        preflight(store, backbone, factorizer_of(params), wanted.values(), inputs=params.statistics.inputs)
        if params.search.method != "none":
            preflight_groups(params, store, backbone, params.search.groups)
        texts, questions = prepare_texts(params, store), prepare_questions(params, store)
        examples = None if plan is None else examples_of(params, store, backbone, texts, questions)
        inputs = prepare_inputs(params, store, backbone, texts, questions, factorizers=[factorizer_of(params)])
        if params.search.method != "none":
            candidate_windows(inputs)
        evaluation = ModelEvaluation.prepare(inputs)
        prepared = measure_calibration(inputs)
        dense = evaluation.evaluate(backbone)
        models = compress_models(prepared, evaluation, wanted, search_ranks(prepared, run, wanted))
        if plan is not None and examples is not None:
            models[UNRECOVERED] = models.pop(params.method)
            models[params.method] = recover_model(prepared, evaluation, examples, models[UNRECOVERED], plan=plan)

        samples = sample_continuations(
            inputs, {DENSE: backbone, **{name: each.checkpoint for name, each in models.items()}}
        )
        results = Results(
            backbone,
            texts,
            inputs.tokens,
            prepared.statistics,
            prepared.spectra,
            dense,
            models,
            questions,
            warning,
            samples,
        )
        figures = draw_figures(store, **figure_inputs(results))
        ran = executions.collect()
        published = publish_results(params, store, results, figures, Effort.since(began, ran), keys_by(ran))
        made = results.artifacts() | {"figures": figures}
        spent = Span(started, time.perf_counter() - began)
        record = keep_record(params, store, "compress", artifacts=made, executions=ran, spent=spent)
        run.log(results, published, record)
    return results


def searches_of(params: Parameters) -> list[Output]:
    """Outputs of the search of a run, if it has one."""
    return [] if params.search.method == "none" else [Output("the folder of searches", params.folder / SEARCHES)]


def compress_models(
    prepared: Prepared, evaluation: ModelEvaluation, wanted: Mapping[str, Recipe], searches: Mapping[str, Search]
) -> dict[str, Compressed]:
    """Compress every model by its recipe, or at the ranks that its search has found, and evaluate it; returns them by name."""
    store, models = prepared.store, dict[str, Compressed]()
    for name, recipe in wanted.items():
        if name in searches:
            ratios = ranks = searches[name].best
            scores, factors = list[Artifact](), slice_factors(prepared, ranks)
        else:
            ratios, ranks, scores, factors = compress_model(prepared, recipe)
        checkpoint = assemble(store, prepared.backbone, factors)
        measured = evaluation.evaluate(checkpoint)
        searched = searches[name].made_artifacts(store) if name in searches else []
        models[name] = Compressed(
            ratios, ranks, factors, checkpoint, measured.metrics, scores, searched=searched, answers=measured.answers
        )
    return models


def figure_inputs(results: Results) -> dict[str, Any]:
    """Artifacts that the figures are drawn from."""
    models = list(results.models.values())
    return {
        "backbone": results.backbone,
        "statistics": results.statistics,
        "spectra": results.spectra or models[-1].factors,
        "scores": models[-1].scores,
        "ratios": [model.ratios for model in models],
        "ranks": [model.ranks for model in models],
        "metrics": [results.dense.metrics, *(model.metrics for model in models)],
        "answers": [each.answers[name] for each in (results.dense, models[-1]) for name in sorted(each.answers)],
        "questions": results.questions,
        "tuned": models[-1].checkpoint if models[-1].untuned else None,
        "models": list(results.models),
        "sets": sorted(results.dense.answers),
    }
