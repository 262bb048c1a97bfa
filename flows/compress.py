"""The main flow: a backbone and a compression target in; a compressed checkpoint, its metrics and its record out.

    python -m flows.compress [section.key=value ...]

backbone -> texts -> tokens -> statistics -> spectra -> ratios -> ranks -> factors -> checkpoint -> metrics

Every arrow is a cached step that takes and gives artifacts, so a second run executes nothing, and another target starts at `ratios`.
The method and its baselines differ in their recipes only: same statistics, spectra and budget. A search (`search.method`) finds ranks
by trials on validation text in the place of both levels. Where `statistics.inputs` is `compressed`,
statistics to factors is one step per block, behind the compressed blocks before it; anchored (`anchor.method`), ranks to factors are.
`recovery` tunes the checkpoint of the method.
"""

import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect import flow, unmapped

from flows.command.runner import THREADS, opened, workers
from flows.parts.calibration import calibrated
from flows.parts.continuations import samples_of
from flows.parts.measurement import device, measurement
from flows.parts.questions import answers_of, check_sight
from flows.parts.rank_search import candidates_of, rehearsed, searched
from flows.parts.recovery import examples_of, plan_of, recovered
from flows.prepare_data import prepared_questions, prepared_texts, prepared_tokens
from mgaa.errors import InputError, UsageError
from tasks.artifacts.files import backbone_record
from tasks.cache.artifact import Artifact, Store
from tasks.cache.executions import keys_by, recording
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters
from tasks.planning.preflight import adds_biases, check_groups, rehearse
from tasks.planning.recipes import Recipe, recipes
from tasks.planning.resources import outlook, refuse_what_cannot_fit
from tasks.record.run_record import Span, keep_record
from tasks.results.publish import DENSE, UNRECOVERED, Compressed, Effort, Evaluated, Results, outputs, publish
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
from tasks.tracking.run import tracked


@flow(name="compress", task_runner=THREADS, validate_parameters=False)
def compress(parameters: Parameters) -> Results:
    """Compress `backbone.source` by the method and by every baseline, evaluate all of them, and publish the results."""
    p, began, started = parameters, time.perf_counter(), datetime.now(UTC)
    check_outputs(p, *outputs(p), *searches_of(p))
    store, where = opened(p), device(parameters)
    factorizer = p.factors.method, p.factors.options
    with tracked(p) as run, recording(store) as executions:
        wanted, plan = recipes(p), plan_of(p)
        backbone = backbone_of(p, store)
        warning = check_sight(p, store, backbone)
        modes: dict[str, Any] = {"inputs": p.statistics.inputs, "gradients": p.statistics.gradients}
        rehearse(store, backbone, factorizer, wanted.values(), **modes)
        if p.search.method != "none":
            rehearsed(p, store, backbone, p.search.groups)
        texts, questions = prepared_texts(p, store), prepared_questions(p, store)
        examples = None if plan is None else examples_of(p, store, backbone, texts, questions)
        tokens = prepared_tokens(p, store, backbone, texts, questions=questions)
        if p.search.method != "none":
            candidates_of(p, store, backbone, texts)
        check_groups(store, tokens["calibration"], factorizer, p.statistics.groups)
        measured = measurement(p, store, texts, tokens)
        statistics = calibrated(p, store, backbone, tokens["calibration"], where)
        bench = Bench(p, store, backbone, tokens["calibration"], statistics, where)
        spectra = bench.spectra() if p.statistics.inputs == "dense" else []
        dense = Evaluated(evaluate(store, backbone, **measured), answers_of(p, store, backbone, questions, where))
        models: dict[str, Compressed] = {}
        searches = searched(p, store, run, backbone, texts, statistics, spectra, wanted, where)
        for name, recipe in wanted.items():
            if name in searches:
                ratios = ranks = searches[name].best
                scores, factors = list[Artifact](), bench.sliced(spectra, ranks)
            else:
                level1 = recipe.level1(centred=adds_biases(factorizer))
                ratios = allocate_ratios(store, backbone, statistics, **level1)
                ranks, scores, factors = (
                    bench.at_once(recipe, spectra, ratios) if spectra else bench.one_by_one(recipe, ratios)
                )
            checkpoint = assemble(store, backbone, factors)
            metrics, answers = (
                evaluate(store, checkpoint, **measured),
                answers_of(p, store, checkpoint, questions, where),
            )
            found = searches[name].made(store) if name in searches else []
            models[name] = Compressed(
                ratios, ranks, factors, checkpoint, metrics, scores, searched=found, answers=answers
            )
        if plan is not None and examples is not None:
            models[UNRECOVERED] = models.pop(p.method)
            given = backbone, examples, tokens["validation"], models[UNRECOVERED]
            models[p.method] = recovered(p, store, *given, plan=plan, measured=measured, questions=questions)

        sampled = {DENSE: backbone, **{name: model.checkpoint for name, model in models.items()}}
        samples = samples_of(p, store, texts, sampled, where)
        results = Results(backbone, texts, tokens, statistics, spectra, dense, models, questions, warning, samples)
        figures = draw_figures(store, **drawn(results))
        published = publish(p, store, results, figures, Effort.since(began, executions), keys_by(executions))
        made = results.artifacts() | {"figures": figures}
        spent = Span(started, time.perf_counter() - began)
        record = keep_record(p, store, "compress", artifacts=made, executions=executions, spent=spent)
        run.log(results, published, record)
    return results


def searches_of(p: Parameters) -> list[Output]:
    """What a run with a search publishes of that."""
    return [] if p.search.method == "none" else [Output("the folder of searches", p.folder / SEARCHES)]


def backbone_of(p: Parameters, store: Store) -> Artifact:
    """The backbone of a run, looked at once; a run that cannot fit into memory or onto the disk ends before."""
    with suppress(InputError):  # of a backbone that cannot be planned with, `load_backbone` says what is wrong
        refuse_what_cannot_fit(outlook(p, device(p), models=len(recipes(p)), workers=workers(p)))
    source, revision = p.backbone.source, p.backbone.revision
    given: dict[str, Any] = {"source": source, "revision": revision, "dtype": p.backbone.dtype, "parts": parts_of(p)}
    found: Artifact = load_backbone(
        store, **given, files=identify(source, revision), architecture=architecture_digest(source, revision)
    )
    return found


def parts_of(p: Parameters) -> list[str]:
    """What of the backbone is compressed.

    Raises:
        UsageError: a method that is for the decoder alone.
    """
    from mgaa.levels import check_anchored, check_parts

    given: dict[str, Any] = {"inputs": p.statistics.inputs, "pruned": p.channels.method != "none"}
    check_parts(p.backbone.parts, **given)
    check_anchored(p.anchor.method != "none", **given, parts=p.backbone.parts)
    if p.refinement.method != "none" and p.anchor.method == "none":
        raise UsageError(
            f"refinement.method is {p.refinement.method!r}, but anchor.method is none, and what is tuned are anchored blocks: set "
            "anchor.method=stream, take method=loss, or set refinement.method=none"
        )
    if len(p.backbone.parts) > 1 and p.search.method != "none":
        raise UsageError(
            f"backbone.parts is {p.backbone.parts}, but a search (search.method={p.search.method}) varies the decoder alone: set "
            "backbone.parts=[decoder], or search.method=none"
        )
    return list(p.backbone.parts)


@dataclass(frozen=True)
class Bench:
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
    def shared(self) -> dict[str, Any]:
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
        found: list[Artifact] = decompose.map(statistics=unmapped(self.statistics), **chosen, **self.shared).result()
        return found

    def at_once(
        self, recipe: Recipe, spectra: list[Artifact], ratios: Artifact
    ) -> tuple[Artifact, list[Artifact], list[Artifact]]:
        """Ranks, channel scores and factors of a model, all blocks together."""
        scores: list[Artifact] = []
        if recipe.channels is not None:
            scores = score_channels.map(statistics=unmapped(self.statistics), **self.shared).result()
        ranks = allocate_ranks(self.store, self.backbone, spectra, scores, ratios, **recipe.level2)
        return ranks, scores, self.sliced(spectra, ranks, scores)

    def sliced(self, spectra: list[Artifact], ranks: Artifact, scores: list[Artifact] | None = None) -> list[Artifact]:
        """The factors of all blocks at some ranks: slices, or fitted to the dense model."""
        if self.parameters.anchor.anchoring is not None:
            return self.anchored(ranks)
        given: dict[str, Any] = {"scores": scores or unmapped(None), "ranks": unmapped(ranks)}
        found: list[Artifact] = factorize.map(spectra=spectra, **given, **self.shared).result()
        return found

    def anchored(self, ranks: Artifact) -> list[Artifact]:
        """The factors of all blocks at some ranks, each fitted to the dense model behind those before it."""
        p, factors = self.parameters, list[Artifact]()
        chosen: dict[str, Any] = {"method": p.factors.method, "options": p.factors.options}
        for block in self.blocks:
            before = [self.store, self.backbone, self.tokens, self.statistics, ranks, factors[:block]]
            given: dict[str, Any] = {
                "anchoring": p.anchor.anchoring,
                "refinement": p.refinement.refinement,
                "measuring": self.measuring,
            }
            factors.append(anchor_block(*before, block=block, **chosen, **given, device=self.device))
        return factors

    @property
    def measuring(self) -> dict[str, Any]:
        """Arguments of `mgaa.statistics.calibration.Measuring`."""
        return self.parameters.statistics.model_dump(exclude={"inputs", "shards", "gradients"})

    def one_by_one(self, recipe: Recipe, ratios: Artifact) -> tuple[Artifact, list[Artifact], list[Artifact]]:
        """The same, one block after the other, each measured behind the compressed ones before it; its scores lie with its factors."""
        p, factors = self.parameters, list[Artifact]()
        chosen: dict[str, Any] = {"method": p.factors.method, "options": p.factors.options, **recipe.block}
        for block in self.blocks:
            before = [self.store, self.backbone, self.tokens, ratios, factors[:block]]
            step = compress_block(*before, block=block, **chosen, measuring=self.measuring, device=self.device)
            factors.append(step)
        return collect_ranks(self.store, factors), [], factors


def drawn(results: Results) -> dict[str, Any]:
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


if __name__ == "__main__":
    from flows.command.cli import main
    from flows.show import show

    sys.exit(main(compress, show=show))
