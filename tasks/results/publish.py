"""Publication of a run: `results/` and `models/compressed/`, written at its end, each file or folder atomically.

Artifacts are sealed and know nothing of each other's times; here they are joined.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tasks.artifacts.allocation_table import allocation_table, plot_tables
from tasks.artifacts.files import ANSWERS, CARD, METRICS, RANKS, SAMPLES, backbone_record, read_table
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
"""Kinds of artifacts that `metrics` joins; metrics of earlier versions have no such inputs."""
BY_QUESTION = ("card", "answers", "caption_losses", "caption_counts")
"""Fields of `answers` besides their summary."""
UNRECOVERED = "unrecovered"
"""The method's model before its recovery."""


@dataclass(frozen=True)
class Compressed:
    """Artifacts of one compressed model.

    Attributes:
        scores: of the channels, where FFNs are pruned.
        untuned: the checkpoint before its recovery and the data that it was tuned on, if there was a recovery.
        searched: artifacts of the search for its ranks, if there was a search.
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
        """Artifacts whose making counts as compression."""
        ranks = dict.fromkeys([self.ratios, self.ranks])  # a search puts both into one artifact
        return [*self.searched, *ranks, *self.scores, *self.factors, *self.untuned, self.checkpoint]


@dataclass(frozen=True)
class Evaluated:
    """Artifacts of a model that was evaluated without compression."""

    metrics: Artifact
    answers: dict[str, Artifact]


@dataclass(frozen=True)
class Results:
    """Artifacts of a run; `models` by name, the run's method last. If blocks are calibrated on compressed ones, there are no shared
    `spectra`.

    `questions` are those about images, if there are any; `warning` is the warning about the calibration; `samples` are
    the continuations of evaluation texts by model, if there are any.
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
        """Map every stage to its artifacts, for the lineage."""
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
    """Cost of a run: steps, seconds of the flow, seconds in which a step was at work, seconds in which one evaluated, memory."""

    executed: int
    reused: int
    wall_seconds: float
    work_seconds: float
    evaluate_seconds: float
    peak_memory_bytes: int

    @staticmethod
    def since(began: float, executions: Sequence[Execution]) -> "Effort":
        """Effort since `began`, the `time.perf_counter()` at the start of the flow, after Prefect's server has started."""
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
    """Files and folders that a run publishes."""
    return [
        Output("output.results", params.results, ("allocation.json", "metrics.json", report.PAGE, RECORD)),
        Output("output.checkpoint", params.folder / params.output.checkpoint),
        *(Output("output.results", params.results / name) for name in ("figures", "plots")),
    ]


def collect_metrics(store: Store, results: Results, *, place: Path, effort: Effort | None = None) -> dict[str, Any]:
    """Content of `results/metrics.json`: every model with the same keys, the evaluation card that they share, the run's effort.

    Args:
        place: folder for the checkpoint of the run's method (the last model); those of the baselines stay in the store.
        effort: of the run, if it is known.
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
    if said := collect_prompts(store, results.samples):
        found["prompts"] = said
    return found if results.questions is None else {**found, "comparison": compare_answers(store, results)}


def collect_prompts(store: Store, samples: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Prompts of the user's own, each with what every model made of it: `{form, prompt, said: {model: text}}`."""
    tables = {model: read_table(store, artifact, SAMPLES)["samples"] for model, artifact in samples.items()}
    return [
        {
            "form": each["form"],
            "prompt": each["prompt"],
            "said": {model: table[index]["text"] for model, table in tables.items()},
        }
        for index, each in enumerate(next(iter(tables.values()), []))
        if "form" in each
    ]


def _image_card(store: Store, results: Results) -> dict[str, Any]:
    """Part of the evaluation card about images, if the model is multimodal."""
    if not backbone_record(store, results.backbone)["sees"]:
        return {}
    calibration = read_table(store, results.tokens["calibration"], CARD)
    seen = {name: calibration.get(name, 0) for name in ("tokens", "image_tokens")}
    asked = {name: read_table(store, each, ANSWERS)["card"] for name, each in results.dense.answers.items()}
    return {"calibration": {**seen, "warning": results.warning}, "questions": asked}


def compare_answers(store: Store, results: Results) -> dict[str, Any]:
    """Accuracy of each model above the uniform one, for every set of questions, with the interval of the paired bootstrap."""
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
        if read_table(store, reference, ANSWERS)["n"] > 1  # an interval needs two questions
    }


def accuracy_difference(answers: Mapping[str, Any], reference: Mapping[str, Any]) -> Interval:
    """Difference of two accuracies over the same questions, with its interval."""
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
    """Write the results and the report to the `output` folders, and export the checkpoint of the run's method with its cards.

    Args:
        keys: cache keys by which the run obtained its artifacts (`tasks.cache.executions.keys_by`).

    Returns:
        The content of `metrics.json` and `allocation.json` by name.
    """
    method = [*results.models][-1]
    metrics = collect_metrics(store, results, place=Path(params.output.checkpoint), effort=effort)
    allocations = {
        name: allocation_table(store, results.backbone, results.statistics, model.ratios, model.ranks)
        for name, model in results.models.items()
    }
    origin = {**environment.origin(), "code": code_digest()}
    artifacts = {**results.artifacts(), "figures": figures}
    subject = report.Subject(store, params.flat(), artifacts, keys, metrics, allocations, origin)
    cards = {
        "evaluation.json": format_json({"model": metrics["models"][method], "card": metrics["card"]}),
        "README.md": report.card_of(subject).encode(),
    }
    store.export(results.models[method].checkpoint, params.folder / params.output.checkpoint, cards)
    store.export(figures, params.results / "figures")
    with replace_folder(params.results / "plots") as out:
        for name, text in plot_tables(allocations, metrics["models"]).items():
            (out / name).write_text(text, encoding="utf-8")
    page = report.render_page(subject).encode()
    with place_files(params.results) as out:
        (out / "allocation.json").write_bytes(format_json(allocations))
        (out / "metrics.json").write_bytes(format_json(metrics))
        (out / report.PAGE).write_bytes(page)
    return {"metrics": metrics, "allocation": allocations}
