"""The part of the flows that evaluates models."""

from dataclasses import dataclass

from flows.parts.inputs import Inputs
from flows.parts.questions import answer_questions
from tasks.artifacts.models import share_models
from tasks.artifacts.specs import TaskSpec, WindowSpec
from tasks.cache.artifact import Artifact
from tasks.config.parameters import Parameters
from tasks.evaluation.hub_tasks import HUB, hub_items
from tasks.evaluation.zero_shot import harness_version
from tasks.results.publish import Evaluated
from tasks.steps.evaluate import evaluate
from tasks.steps.fetch_items import fetch_items
from tasks.steps.make_items import make_items
from tasks.steps.measure_perplexity import measure_perplexity
from tasks.steps.score_tasks import content_of, is_standard, score_tasks


@dataclass(frozen=True)
class TaskSource:
    """Zero-shot tasks with their items; null where those lie in a folder."""

    tasks: TaskSpec
    items: Artifact | None


@dataclass(frozen=True)
class ModelEvaluation:
    """Measurements of every model of a run: on the sections `evaluation` and `validation`, zero-shot tasks, and questions."""

    inputs: Inputs
    sources: list[TaskSource]

    @staticmethod
    def prepare(inputs: Inputs) -> "ModelEvaluation":
        """Find the items of the tasks, before anything is measured.

        Raises:
            UsageError, InputError: as `tasks.steps.score_tasks.content_of`.
        """
        given, sources = inputs.params.evaluation, []

        def spec(tasks: list[str], folder: str | None) -> TaskSpec:
            settings = (given.limit, given.batch_size, given.add_bos_token)
            return TaskSpec(tasks, *settings, folder, content_of(tasks, folder))

        if made := [task for task in given.tasks if not is_standard(task)]:
            items = make_items(inputs.store, inputs.texts)
            sources.append(TaskSource(spec(made, None), items))
        standard = [task for task in given.tasks if is_standard(task)]
        if standard and given.tasks_folder == HUB:
            items = fetch_items(inputs.store, items=hub_items(standard))
            sources.append(TaskSource(spec(standard, HUB), items))
        elif standard:
            sources.append(TaskSource(spec(standard, given.tasks_folder), None))
        return ModelEvaluation(inputs, sources)

    def evaluate(self, model: Artifact) -> Evaluated:
        """The metrics and the answers of a model."""
        return Evaluated(self.metrics(model), answer_questions(self.inputs, model))

    def metrics(self, model: Artifact) -> Artifact:
        """The artifact `metrics` of a model, which is loaded once, and only if something must be measured."""
        given, store = self.inputs.params.evaluation, self.inputs.store
        with share_models():
            evaluation, validation = self.perplexity(model, "evaluation"), self.perplexity(model, "validation")
            scores = [
                score_tasks(store, model, each.items, chosen=each.tasks, device=self.inputs.device)
                for each in self.sources
            ]
        harness = f"lm-eval {harness_version()}"
        return evaluate(store, evaluation, validation, scores, tasks=given.tasks, limit=given.limit, harness=harness)

    def perplexity(self, model: Artifact, section: str) -> Artifact:
        """The artifact `perplexity` of a model on one section."""
        windows = windows_of(self.inputs.params, section)
        tokens, device = self.inputs.tokens[section], self.inputs.device
        return measure_perplexity(self.inputs.store, model, tokens, windows=windows, device=device)


def windows_of(params: Parameters, section: str) -> WindowSpec:
    """The windows that the perplexity of a section is measured on."""
    texts = getattr(params.data, section)
    return WindowSpec(texts.length, getattr(texts, "stride", None), params.evaluation.batch_size)
