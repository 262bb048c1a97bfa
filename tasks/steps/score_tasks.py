"""Step 10b, score tasks: zero-shot tasks of one model, through the lm-evaluation-harness (tasks/evaluation/zero_shot.py).

As in tasks/steps/measure_perplexity.py the model is read back from the files that a user would load. Tasks whose items are made from the
evaluation texts are one execution, tasks whose items come from files another: other texts repeat the first alone.
"""

from collections.abc import Sequence
from pathlib import Path

from mgaa.errors import UsageError
from tasks.artifacts.files import TASK_SCORES, write_table
from tasks.artifacts.models import load_artifact
from tasks.artifacts.specs import TaskSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import file_digest
from tasks.cache.step import step
from tasks.evaluation import zero_shot
from tasks.evaluation.hub_tasks import HUB


@step(kind="task_scores")
def score_tasks(
    out: Path,
    store: Store,
    model: Artifact,
    items: Artifact | None,
    *,
    chosen: TaskSpec,
    device: str,
) -> None:
    """Score a backbone or a checkpoint.

    Args:
        model: artifact `backbone`, `model` or `checkpoint`.
        items: artifact `items`; null where the items lie in a folder.
    """
    loaded, processor = load_artifact(store, model, device)
    place = store.folder(items) if items is not None else Path(str(chosen.folder))
    scores = zero_shot.run_tasks(
        loaded,
        processor,
        chosen.tasks,
        folder=place,
        limit=chosen.limit,
        batch_size=chosen.batch_size,
        add_bos_token=chosen.add_bos_token,
    )
    write_table(out / TASK_SCORES, scores)


def is_standard(task: str) -> bool:
    """Whether the items of a task come from a file; the others are made from the evaluation texts."""
    return task not in zero_shot.MADE


def content_of(tasks: Sequence[str], folder: str | None) -> dict[str, str]:
    """sha256 of what the tasks depend on besides code: the items of every standard task, and the definition of every other.

    Raises:
        UsageError: an unknown task, or a standard one without a folder.
        InputError: a file is missing.
    """
    if unknown := sorted(set(tasks) - set(zero_shot.known_tasks())):
        raise UsageError(f"evaluation.tasks has {unknown[0]!r}, expected some of {', '.join(zero_shot.known_tasks())}")
    standard = [task for task in tasks if is_standard(task)]
    if standard and folder is None:
        raise UsageError(
            f"evaluation.tasks has {standard[0]!r}, whose items are not part of the project: set evaluation.tasks_folder to a "
            f"folder with {standard[0]}.jsonl, or to {HUB}, or take {' and '.join(zero_shot.MADE)}"
        )
    paths = zero_shot.task_files(standard, Path(folder)) if standard and folder not in (None, HUB) else {}
    definitions = {f"{task}.yaml": zero_shot.DEFINITIONS / f"{task}.yaml" for task in tasks}
    paths |= {name: path for name, path in definitions.items() if path.is_file()}
    return {name: file_digest(path, path.stat()) for name, path in paths.items()}
