"""The part of the flows that measures models: what every model is measured on, and how."""

from dataclasses import dataclass

from flows.parts.inputs import Inputs
from flows.parts.questions import answer_questions
from tasks.artifacts.models import share_models
from tasks.cache.artifact import Artifact
from tasks.results.publish import Evaluated
from tasks.steps.evaluate import evaluate
from tasks.steps.make_items import make_items
from tasks.steps.measure_perplexity import measure_perplexity
from tasks.steps.score_tasks import content_of, is_standard, score_tasks


@dataclass(frozen=True)
class TaskSource:
    """Zero-shot tasks whose items lie together.

    Attributes:
        items: made from the evaluation texts; null where they lie in `folder`.
        content: sha256 of every file that the tasks depend on.
    """

    tasks: list[str]
    items: Artifact | None
    folder: str | None
    content: dict[str, str]


@dataclass(frozen=True)
class ModelEvaluation:
    """What every model of a run is measured on: the sections `evaluation` and `validation`, zero-shot tasks, and questions."""

    inputs: Inputs
    sources: list[TaskSource]

    @staticmethod
    def prepare(inputs: Inputs) -> "ModelEvaluation":
        """Find the items of the tasks, before anything is measured.

        Raises:
            UsageError, InputError: as `tasks.steps.score_tasks.content_of`.
        """
        given, sources = inputs.params.evaluation, []
        tasks, folder = given.tasks, given.tasks_folder
        if made := [task for task in tasks if not is_standard(task)]:
            sources.append(TaskSource(made, make_items(inputs.store, inputs.texts), None, content_of(made, None)))
        if standard := [task for task in tasks if is_standard(task)]:
            sources.append(TaskSource(standard, None, folder, content_of(standard, folder)))
        return ModelEvaluation(inputs, sources)

    def evaluate(self, model: Artifact) -> Evaluated:
        """The metrics and the answers of a model."""
        return Evaluated(self.metrics(model), answer_questions(self.inputs, model))

    def metrics(self, model: Artifact) -> Artifact:
        """The artifact `metrics` of a model, which is loaded once, and only if something must be measured."""
        given = self.inputs.params.evaluation
        with share_models():
            perplexities = [self.perplexity(model, section) for section in ("evaluation", "validation")]
            scores = [self.task_scores(model, source) for source in self.sources]
        return evaluate(self.inputs.store, *perplexities, scores, tasks=given.tasks, limit=given.limit)

    def perplexity(self, model: Artifact, section: str) -> Artifact:
        """The artifact `perplexity` of a model on one section."""
        params = self.inputs.params
        texts = getattr(params.data, section)
        return measure_perplexity(
            self.inputs.store,
            model,
            self.inputs.tokens[section],
            length=texts.length,
            stride=getattr(texts, "stride", None),
            batch_size=params.evaluation.batch_size,
            device=self.inputs.device,
        )

    def task_scores(self, model: Artifact, source: TaskSource) -> Artifact:
        """The artifact `task_scores` of a model."""
        given = self.inputs.params.evaluation
        return score_tasks(
            self.inputs.store,
            model,
            source.items,
            tasks=source.tasks,
            limit=given.limit,
            batch_size=given.batch_size,
            folder=source.folder,
            content=source.content,
            device=self.inputs.device,
        )
