"""What a run leaves for people: `results/` and `models/compressed/`, written at its end, each file or folder as a whole.

Artifacts are sealed and know nothing of each other's times; here they are joined.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.artifacts.allocation_table import allocation_table, plot_tables
from tasks.artifacts.files import ANSWERS, CARD, METRICS, RANKS, backbone_record, read_table
from tasks.cache import environment
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import place_files, replace_folder
from tasks.cache.executions import Execution, busy_seconds, peak_rss
from tasks.cache.manifest import RECORD, format_json
from tasks.cache.source import code_digest
from tasks.config.outputs import Output
from tasks.config.parameters import Parameters
from tasks.evaluation.bootstrap import Bootstrap, Interval
from tasks.planning.recipes import UNIFORM
from tasks.results import report

DENSE = "dense"
EVALUATING = ("answer", "evaluate", "generate", "measure", "measure_perplexity", "score_tasks", "try_ranks")
"""Steps that measure."""
MEASUREMENTS = ("perplexity", "task_scores")
"""Kinds of artifacts that `metrics` join; those of earlier versions have no such inputs."""
BY_QUESTION = ("card", "answers", "caption_losses", "caption_counts")
"""What `answers` tell beside their summary."""
UNRECOVERED = "unrecovered"
"""The method's model before its recovery."""


@dataclass(frozen=True)
class Compressed:
    """The artifacts of one compressed model.

    Attributes:
        scores: of the channels, where FFNs are pruned.
        untuned: the checkpoint before its recovery, and what it was tuned on, where there was one.
        searched: what was made to find its ranks, where there was a search.
        answers: to every set of questions about images, by its name.
    """

    ratios: Artifact
    ranks: Artifact
    factors: list[Artifact]
    checkpoint: Artifact
    metrics: Artifact
    scores: list[Artifact] = field(default_factory=list)
    untuned: list[Artifact] = field(default_factory=list)
    searched: list[Artifact] = field(default_factory=list)
    answers: dict[str, Artifact] = field(default_factory=dict)

    @property
    def compression_artifacts(self) -> list[Artifact]:
        """Everything whose making counts as compression."""
        ranks = dict.fromkeys([self.ratios, self.ranks])  # a search leaves both in one
        return [*self.searched, *ranks, *self.scores, *self.factors, *self.untuned, self.checkpoint]


@dataclass(frozen=True)
class Evaluated:
    """The artifacts of a model that was measured as it is."""

    metrics: Artifact
    answers: dict[str, Artifact]


@dataclass(frozen=True)
class Results:
    """The artifacts of a run; `models` by name, the run's method last. Behind compressed blocks there are no shared `spectra`.

    `questions` are those about images, where there are any; `warning` is what must be said of the calibration; `samples` are
    the continuations of evaluation texts by model, where there are any.
    """

    backbone: Artifact
    texts: Artifact
    tokens: dict[str, Artifact]
    statistics: Artifact
    spectra: list[Artifact]
    dense: Evaluated
    models: dict[str, Compressed]
    questions: Artifact | None = None
    warning: str | None = None
    samples: dict[str, Artifact] = field(default_factory=dict)

    def artifacts(self) -> dict[str, Artifact | list[Artifact]]:
        """Every artifact by the stage that it belongs to, for lineage."""
        shared: dict[str, Artifact | list[Artifact]] = {
            "backbone": self.backbone,
            "texts": self.texts,
            **{f"tokens.{name}": tokens for name, tokens in self.tokens.items()},
            "statistics": self.statistics,
            "spectra": self.spectra,
            "metrics.dense": self.dense.metrics,
            "answers.dense": [*self.dense.answers.values()],
        }
        if self.questions is not None:
            shared["questions"] = self.questions
        for name, model in self.models.items():
            kinds = {**vars(model), "answers": [*model.answers.values()]}
            shared |= {f"{kind}.{name}": artifact for kind, artifact in kinds.items()}
        shared |= {f"samples.{name}": artifact for name, artifact in self.samples.items()}
        return {stage: given for stage, given in shared.items() if given}


@dataclass(frozen=True)
class Effort:
    """What a run cost: steps, seconds of the flow, seconds in which a step was at work, those in which one evaluated, memory."""

    executed: int
    reused: int
    wall_seconds: float
    work_seconds: float
    evaluate_seconds: float
    peak_memory_bytes: int

    @staticmethod
    def since(began: float, executions: Sequence[Execution]) -> "Effort":
        """From `time.perf_counter()` at the start of the flow, which is after Prefect's server has started."""
        reused = sum(execution.reused for execution in executions)
        wall = time.perf_counter() - began
        evaluating = [execution for execution in executions if execution.task in EVALUATING]
        return Effort(
            executed=len(executions) - reused,
            reused=reused,
            wall_seconds=wall,
            work_seconds=busy_seconds(executions),
            evaluate_seconds=busy_seconds(evaluating),
            peak_memory_bytes=max(peak_rss(), *(each.peak_rss for each in executions), 0),
        )


def outputs(params: Parameters) -> list[Output]:
    """What a run publishes."""
    return [
        Output("output.results", params.results, ("allocation.json", "metrics.json", report.PAGE, RECORD)),
        Output("output.checkpoint", params.folder / params.output.checkpoint),
        *(Output("output.results", params.results / name) for name in ("figures", "plots")),
    ]


def collect_metrics(store: Store, results: Results, *, place: Path, effort: Effort | None = None) -> dict[str, Any]:
    """The content of `results/metrics.json`: every model with the same keys, the evaluation card that they share, the run's effort.

    Args:
        place: where the checkpoint of the run's method (the last model) goes; those of the baselines stay in the store.
        effort: of the run, where it is known.
    """
    backbone = backbone_record(store, results.backbone)
    common = [results.backbone, results.texts, results.tokens["calibration"], results.statistics, *results.spectra]
    dense = results.dense
    models = {DENSE: _model(store, dense.metrics, dense.answers, backbone["linear_parameters"], backbone, [])}
    for name, model in results.models.items():
        kept = read_table(store, model.ranks, RANKS)["linear_parameters"]
        made = [*common, *model.compression_artifacts]
        kept_in = Path(store.path.name, model.checkpoint.kind, model.checkpoint.digest)
        checkpoint = place if name == [*results.models][-1] else kept_in
        models[name] = {
            **_model(store, model.metrics, model.answers, kept, backbone, made),
            "checkpoint": str(checkpoint),
        }
    card = read_table(store, dense.metrics, METRICS)["card"] | _image_card(store, results)
    found = {"models": models, "card": card, **({} if effort is None else {"run": asdict(effort)})}
    return found if results.questions is None else {**found, "comparison": compare_answers(store, results)}


def _image_card(store: Store, results: Results) -> dict[str, Any]:
    """What the evaluation card says of images, where the model sees."""
    if not backbone_record(store, results.backbone)["sees"]:
        return {}
    calibration = read_table(store, results.tokens["calibration"], CARD)
    seen = {name: calibration.get(name, 0) for name in ("tokens", "image_tokens")}
    asked = {name: read_table(store, each, ANSWERS)["card"] for name, each in results.dense.answers.items()}
    return {"calibration": {**seen, "warning": results.warning}, "questions": asked}


def compare_answers(store: Store, results: Results) -> dict[str, Any]:
    """For every set of questions, how far each model's accuracy is above the uniform one's, with the paired bootstrap's interval."""
    if UNIFORM not in results.models:
        return {}
    return {
        name: {
            model: asdict(
                accuracy_difference(
                    read_table(store, each.answers[name], ANSWERS), read_table(store, reference, ANSWERS)
                )
            )
            for model, each in results.models.items()
            if model != UNIFORM
        }
        for name, reference in results.models[UNIFORM].answers.items()
        if read_table(store, reference, ANSWERS)["n"] > 1  # an interval takes two
    }


def accuracy_difference(answers: Mapping[str, Any], reference: Mapping[str, Any]) -> Interval:
    """How far one accuracy is above another over the same questions."""
    correct, other = ([float(each["correct"]) for each in given["answers"]] for given in (answers, reference))
    return Bootstrap([1] * len(correct)).difference(correct, other)


def _model(
    store: Store,
    evaluated: Artifact,
    answers: Mapping[str, Artifact],
    kept: int,
    backbone: Mapping[str, Any],
    made: list[Artifact],
) -> dict[str, Any]:
    measured = {key: value for key, value in read_table(store, evaluated, METRICS).items() if key != "card"}
    questions = {
        name: {key: value for key, value in read_table(store, each, ANSWERS).items() if key not in BY_QUESTION}
        for name, each in answers.items()
    }
    return {
        **measured,
        **({"questions": questions} if questions else {}),
        "linear_parameters": kept,
        "compression": 1 - kept / backbone["linear_parameters"],
        "model_compression": 1 - measured["parameters"] / backbone["parameters"],
        "seconds": {
            "compress": sum(store.manifest(artifact)["seconds"] for artifact in made),
            "evaluate": sum(evaluation_seconds(store, each) for each in (evaluated, *answers.values())),
        },
    }


def evaluation_seconds(store: Store, evaluated: Artifact) -> float:
    """Seconds that an artifact `metrics` or `answers` took, with those of the measurements that it joins."""
    manifest = store.manifest(evaluated)
    inputs = (each for given in manifest["inputs"].values() for each in (given if isinstance(given, list) else [given]))
    joined = [Artifact(**each) for each in inputs if each["kind"] in MEASUREMENTS]
    return float(sum(store.manifest(each)["seconds"] for each in joined) + manifest["seconds"])


def publish_results(
    params: Parameters, store: Store, results: Results, figures: Artifact, effort: Effort, keys: Mapping[Artifact, str]
) -> dict[str, Any]:
    """Write the results and the report where `output` says, and export the checkpoint of the run's method with its cards.

    Args:
        keys: the stage keys by which the run had its artifacts (`tasks.cache.executions.keys_by`).

    Returns:
        The content of `metrics.json` and `allocation.json` by name.
    """
    method = [*results.models][-1]
    found = collect_metrics(store, results, place=Path(params.output.checkpoint), effort=effort)
    allocations = {
        name: allocation_table(store, results.backbone, results.statistics, model.ratios, model.ranks)
        for name, model in results.models.items()
    }
    origin = {**environment.origin(), "code": code_digest()}
    told = {**results.artifacts(), "figures": figures}
    subject = report.Subject(store, params.flat(), told, keys, found, allocations, origin)
    cards = {
        "evaluation.json": format_json({"model": found["models"][method], "card": found["card"]}),
        "README.md": report.card_of(subject).encode(),
    }
    store.export(results.models[method].checkpoint, params.folder / params.output.checkpoint, cards)
    store.export(figures, params.results / "figures")
    with replace_folder(params.results / "plots") as out:
        for name, text in plot_tables(allocations, found["models"]).items():
            (out / name).write_text(text, encoding="utf-8")
    page = report.render_page(subject).encode()
    with place_files(params.results) as out:
        (out / "allocation.json").write_bytes(format_json(allocations))
        (out / "metrics.json").write_bytes(format_json(found))
        (out / report.PAGE).write_bytes(page)
    return {"metrics": found, "allocation": allocations}
