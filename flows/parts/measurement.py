"""The part of every flow that measures models: where it computes, and what every model is measured on."""

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.artifacts.models import share_models
from tasks.cache.artifact import Artifact, Store
from tasks.cache.placement import Placement
from tasks.config.parameters import Parameters
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
    """What every model of a run is measured on.

    Attributes:
        tokens: of the sections `evaluation` and `validation`.
        sources: those of the tasks.
    """

    params: Parameters
    store: Store
    tokens: Mapping[str, Artifact]
    sources: list[TaskSource]

    @staticmethod
    def prepare(params: Parameters, store: Store, texts: Artifact, tokens: Mapping[str, Artifact]) -> "ModelEvaluation":
        """Find the items of the tasks, before anything is measured.

        Raises:
            UsageError, InputError: as `tasks.steps.score_tasks.content_of`.
        """
        tasks, folder, sources = params.evaluation.tasks, params.evaluation.tasks_folder, []
        if made := [task for task in tasks if not is_standard(task)]:
            sources.append(TaskSource(made, make_items(store, texts), None, content_of(made, None)))
        if standard := [task for task in tasks if is_standard(task)]:
            sources.append(TaskSource(standard, None, folder, content_of(standard, folder)))
        return ModelEvaluation(params, store, tokens, sources)

    def metrics(self, model: Artifact) -> Artifact:
        """The artifact `metrics` of a model, which is loaded once, and only if something must be measured."""
        given = self.params.evaluation
        with share_models():
            perplexities = [self.perplexity(model, section) for section in ("evaluation", "validation")]
            scores = [self.task_scores(model, source) for source in self.sources]
        return evaluate(self.store, *perplexities, scores, tasks=given.tasks, limit=given.limit)

    def perplexity(self, model: Artifact, section: str) -> Artifact:
        """The artifact `perplexity` of a model on one section."""
        texts = getattr(self.params.data, section)
        return measure_perplexity(
            self.store,
            model,
            self.tokens[section],
            length=texts.length,
            stride=getattr(texts, "stride", None),
            batch_size=self.params.evaluation.batch_size,
            device=resolve_device(self.params),
        )

    def task_scores(self, model: Artifact, source: TaskSource) -> Artifact:
        """The artifact `task_scores` of a model."""
        given = self.params.evaluation
        return score_tasks(
            self.store,
            model,
            source.items,
            tasks=source.tasks,
            limit=given.limit,
            batch_size=given.batch_size,
            folder=source.folder,
            content=source.content,
            device=resolve_device(self.params),
        )


def resolve_device(params: Parameters) -> Placement:
    """Where to compute: `auto` is CUDA where there is one."""
    import torch

    found = params.backbone.device
    if found == "auto":
        found = "cuda" if torch.cuda.is_available() else "cpu"
    return Placement(found, params.backbone.stream, params.backbone.hidden)
