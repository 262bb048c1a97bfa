"""The main flow: a backbone and a compression target in; a compressed checkpoint, its metrics and its record out.

    python -m flows.compress [section.key=value ...]

backbone -> texts -> tokens -> statistics -> spectra -> ratios -> ranks -> factors -> checkpoint -> metrics

Every arrow is a cached step that takes and gives artifacts, so a second run executes nothing, and another target starts at `ratios`.
The method and its baselines differ in their recipes only: same statistics, spectra and budget. A search (`search.method`) finds ranks
by trials on validation text in the place of both levels. Where `statistics.inputs` is `compressed`,
statistics to factors is one step per block, behind the compressed blocks before it; anchored (`anchor.method`), ranks to factors are.
`recovery` tunes the checkpoint of the method.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.compress:compress", show="flows.show:show"))

import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect import flow, unmapped

from flows.command.runner import THREADS, open_run_store, worker_count
from flows.parts.calibration import measure_statistics
from flows.parts.continuations import sample_continuations
from flows.parts.measurement import evaluation_arguments, resolve_device
from flows.parts.questions import answer_questions, check_calibration_images
from flows.parts.rank_search import candidate_windows, preflight_groups, search_ranks
from flows.parts.recovery import examples_of, plan_of, recover_model
from flows.prepare_data import prepare_questions, prepare_texts, prepare_tokens
from mgaa.errors import InputError
from tasks.artifacts.files import backbone_record
from tasks.cache.artifact import Artifact, Store
from tasks.cache.executions import keys_by, record_executions
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters
from tasks.planning.preflight import adds_biases, check_groups, preflight
from tasks.planning.recipes import Recipe, recipes
from tasks.planning.resources import plan_run, refuse_what_cannot_fit
from tasks.record.run_record import Span, keep_record
from tasks.results.publish import DENSE, UNRECOVERED, Compressed, Effort, Evaluated, Results, outputs, publish_results
from tasks.search.publish import FOLDER as SEARCHES
from tasks.steps.allocate_ranks import allocate_ranks
from tasks.steps.allocate_ratios import allocate_ratios
from tasks.steps.anchor_block import anchor_block
from tasks.steps.assemble import assemble
from tasks.steps.collect_ranks import collect_ranks
from tasks.steps.compress_block import compress_block
from tasks.steps.decompose import decompose
from tasks.steps.draw_figures import draw_figures
from tasks.steps.evaluate import evaluate
from tasks.steps.factorize import factorize
from tasks.steps.load_backbone import architecture_digest, identify, load_backbone
from tasks.steps.score_channels import score_channels
from tasks.tracking.run import track_run


@flow(name="compress", task_runner=THREADS, validate_parameters=False)
def compress(parameters: Parameters) -> Results:
    """Compress `backbone.source` by the method and by every baseline, evaluate all of them, and publish the results."""
    params, began, started = parameters, time.perf_counter(), datetime.now(UTC)
    check_outputs(params, *outputs(params), *searches_of(params))
    store, where = open_run_store(params), resolve_device(parameters)
    factorizer = params.factors.method, params.factors.options
    with track_run(params) as run, record_executions(store) as executions:
        wanted, plan = recipes(params), plan_of(params)
        backbone = prepare_backbone(params, store)
        warning = check_calibration_images(params, store, backbone)
        preflight(store, backbone, factorizer, wanted.values(), inputs=params.statistics.inputs)
        if params.search.method != "none":
            preflight_groups(params, store, backbone, params.search.groups)
        texts, questions = prepare_texts(params, store), prepare_questions(params, store)
        examples = None if plan is None else examples_of(params, store, backbone, texts, questions)
        tokens = prepare_tokens(params, store, backbone, texts, questions=questions)
        if params.search.method != "none":
            candidate_windows(params, store, backbone, texts)
        check_groups(store, tokens["calibration"], factorizer, params.statistics.groups)
        measured = evaluation_arguments(params, store, texts, tokens)
        statistics = measure_statistics(params, store, backbone, tokens["calibration"], where)
        bench = ModelBuilder(params, store, backbone, tokens["calibration"], statistics, where)
        spectra = bench.spectra() if params.statistics.inputs == "dense" else []
        dense = Evaluated(
            evaluate(store, backbone, **measured), answer_questions(params, store, backbone, questions, where)
        )
        models: dict[str, Compressed] = {}
        searches = search_ranks(params, store, run, backbone, texts, statistics, spectra, wanted, where)
        for name, recipe in wanted.items():
            if name in searches:
                ratios = ranks = searches[name].best
                scores, factors = list[Artifact](), bench.slice_factors(spectra, ranks)
            else:
                level1 = recipe.level1(centred=adds_biases(factorizer))
                ratios = allocate_ratios(store, backbone, statistics, **level1)
                ranks, scores, factors = (
                    bench.compress_at_once(recipe, spectra, ratios)
                    if spectra
                    else bench.compress_sequentially(recipe, ratios)
                )
            checkpoint = assemble(store, backbone, factors)
            metrics, answers = (
                evaluate(store, checkpoint, **measured),
                answer_questions(params, store, checkpoint, questions, where),
            )
            found = searches[name].made_artifacts(store) if name in searches else []
            models[name] = Compressed(
                ratios, ranks, factors, checkpoint, metrics, scores, searched=found, answers=answers
            )
        if plan is not None and examples is not None:
            models[UNRECOVERED] = models.pop(params.method)
            given = backbone, examples, tokens["validation"], models[UNRECOVERED]
            models[params.method] = recover_model(
                params, store, *given, plan=plan, measured=measured, questions=questions
            )

        sampled = {DENSE: backbone, **{name: model.checkpoint for name, model in models.items()}}
        samples = sample_continuations(params, store, texts, sampled, where)
        results = Results(backbone, texts, tokens, statistics, spectra, dense, models, questions, warning, samples)
        figures = draw_figures(store, **figure_inputs(results))
        published = publish_results(
            params, store, results, figures, Effort.since(began, executions), keys_by(executions)
        )
        made = results.artifacts() | {"figures": figures}
        spent = Span(started, time.perf_counter() - began)
        record = keep_record(params, store, "compress", artifacts=made, executions=executions, spent=spent)
        run.log(results, published, record)
    return results


def searches_of(params: Parameters) -> list[Output]:
    """What a run with a search publishes of that."""
    return [] if params.search.method == "none" else [Output("the folder of searches", params.folder / SEARCHES)]


def prepare_backbone(params: Parameters, store: Store) -> Artifact:
    """The backbone of a run, looked at once; a run that cannot fit into memory or onto the disk ends before."""
    with suppress(InputError):  # of a backbone that cannot be planned with, `load_backbone` says what is wrong
        refuse_what_cannot_fit(
            plan_run(params, resolve_device(params), models=len(recipes(params)), workers=worker_count(params))
        )
    source, revision = params.backbone.source, params.backbone.revision
    given: dict[str, Any] = {
        "source": source,
        "revision": revision,
        "dtype": params.backbone.dtype,
        "parts": list(params.backbone.parts),
    }
    found: Artifact = load_backbone(
        store, **given, files=identify(source, revision), architecture=architecture_digest(source, revision)
    )
    return found


@dataclass(frozen=True)
class ModelBuilder:
    """What the models of a run share, and the two ways to their factors."""

    parameters: Parameters
    store: Store
    backbone: Artifact
    tokens: Artifact
    statistics: Artifact
    device: str

    @property
    def blocks(self) -> list[int]:
        """Their indices."""
        return list(range(backbone_record(self.store, self.backbone)["blocks"]))

    @property
    def step_arguments(self) -> dict[str, Any]:
        """Arguments of the steps that are mapped over the blocks."""
        return {
            "store": unmapped(self.store),
            "backbone": unmapped(self.backbone),
            "block": self.blocks,
            "device": self.device,
        }

    def spectra(self) -> list[Artifact]:
        """The decompositions of all blocks, in which all models are slices."""
        given = self.parameters.factors
        chosen: dict[str, Any] = {"method": given.method, "options": unmapped(given.options)}
        found: list[Artifact] = decompose.map(
            statistics=unmapped(self.statistics), **chosen, **self.step_arguments
        ).result()
        return found

    def compress_at_once(
        self, recipe: Recipe, spectra: list[Artifact], ratios: Artifact
    ) -> tuple[Artifact, list[Artifact], list[Artifact]]:
        """Ranks, channel scores and factors of a model, all blocks together."""
        scores: list[Artifact] = []
        if recipe.channels is not None:
            scores = score_channels.map(statistics=unmapped(self.statistics), **self.step_arguments).result()
        ranks = allocate_ranks(self.store, self.backbone, spectra, scores, ratios, **recipe.level2)
        return ranks, scores, self.slice_factors(spectra, ranks, scores)

    def slice_factors(
        self, spectra: list[Artifact], ranks: Artifact, scores: list[Artifact] | None = None
    ) -> list[Artifact]:
        """The factors of all blocks at some ranks: slices, or fitted to the dense model."""
        if self.parameters.anchor.anchoring is not None:
            return self.anchor_factors(ranks)
        given: dict[str, Any] = {"scores": scores or unmapped(None), "ranks": unmapped(ranks)}
        found: list[Artifact] = factorize.map(spectra=spectra, **given, **self.step_arguments).result()
        return found

    def anchor_factors(self, ranks: Artifact) -> list[Artifact]:
        """The factors of all blocks at some ranks, each fitted to the dense model behind those before it."""
        p, factors = self.parameters, list[Artifact]()
        chosen: dict[str, Any] = {"method": p.factors.method, "options": p.factors.options}
        for block in self.blocks:
            before = [self.store, self.backbone, self.tokens, self.statistics, ranks, factors[:block]]
            given: dict[str, Any] = {
                "anchoring": p.anchor.anchoring,
                "refinement": p.refinement.refinement,
                "measuring": self.calibration_arguments,
            }
            factors.append(anchor_block(*before, block=block, **chosen, **given, device=self.device))
        return factors

    @property
    def calibration_arguments(self) -> dict[str, Any]:
        """Arguments of `mgaa.statistics.calibration.CalibrationSettings`."""
        return self.parameters.statistics.model_dump(exclude={"inputs", "shards", "gradients"})

    def compress_sequentially(
        self, recipe: Recipe, ratios: Artifact
    ) -> tuple[Artifact, list[Artifact], list[Artifact]]:
        """The same, one block after the other, each measured behind the compressed ones before it; its scores lie with its factors."""
        p, factors = self.parameters, list[Artifact]()
        chosen: dict[str, Any] = {"method": p.factors.method, "options": p.factors.options, **recipe.block}
        for block in self.blocks:
            before = [self.store, self.backbone, self.tokens, ratios, factors[:block]]
            step = compress_block(
                *before, block=block, **chosen, measuring=self.calibration_arguments, device=self.device
            )
            factors.append(step)
        return collect_ranks(self.store, factors), [], factors


def figure_inputs(results: Results) -> dict[str, Any]:
    """The artifacts that the figures are drawn from."""
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
