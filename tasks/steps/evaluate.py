"""Step 10, evaluate: perplexity, bits per byte and zero-shot tasks of one model, with the evaluation card.

The model is read back from the files that a user would load, never taken from memory, so what is measured is what is shipped.
"""

from pathlib import Path
from typing import Any

from mgaa.errors import UsageError
from tasks.artifacts.files import METRICS, token_stream, write_table
from tasks.artifacts.models import load_artifact, weight_bytes
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import file_digest
from tasks.cache.placement import place_of_hidden
from tasks.cache.step import resuming_step
from tasks.evaluation import zero_shot
from tasks.evaluation.protocol import protocol


@resuming_step(kind="metrics")
def evaluate(
    out: Path,
    unfinished: Path,
    store: Store,
    model: Artifact,
    evaluation: Artifact,
    validation: Artifact,
    items: Artifact | None,
    *,
    length: int,
    stride: int | None,
    batch_size: int,
    tasks: list[str],
    limit: int | None,
    tasks_folder: str | None,
    tasks_content: dict[str, str],
    device: str,
) -> None:
    """Measure a backbone or a checkpoint.

    Args:
        model: artifact `backbone`, `model` or `checkpoint`.
        evaluation, validation: artifact `tokens`; the second is for choices, and reported apart.
        items: artifact `items`, where a task is made from the evaluation texts.
        tasks_folder, tasks_content: where the items of the other tasks lie, and the sha256 of each file.
    """
    from mgaa.evaluation.perplexity import perplexity

    loaded, processor = load_artifact(store, model, device)
    ids, card = token_stream(store, evaluation)
    choosing, choosing_card = token_stream(store, validation)
    width = loaded.config.get_text_config().hidden_size * loaded.dtype.itemsize

    def measured(name: str, stream: Any, length: int, stride: int | None = None) -> Any:
        place = place_of_hidden(device, len(stream) * width * length // (stride or length))
        waiting: dict[str, Any] = {"place": place, "folder": unfinished / name}
        return perplexity(loaded, stream, length=length, stride=stride, batch_size=batch_size, **waiting)

    result = measured("evaluation", ids, length, stride)
    chosen = measured("validation", choosing, choosing_card["length"])
    options: dict[str, Any] = {"limit": limit, "batch_size": batch_size, "max_length": None}
    scores: dict[str, Any] = {}
    if items is not None:
        own = [task for task in tasks if not is_standard(task)]
        scores |= zero_shot.run(loaded, processor, own, folder=store.folder(items), **options)
    if tasks_folder is not None:
        standard = [task for task in tasks if is_standard(task)]
        scores |= zero_shot.run(loaded, processor, standard, folder=Path(tasks_folder), **options)
    record = {
        "perplexity": result.perplexity,
        "perplexity_stderr": None if result.standard_error is None else result.perplexity * result.standard_error,
        "nll": result.nll,
        "nll_stderr": result.standard_error,
        "bits_per_byte": result.bits_per_byte(card["stream_tokens"], card["bytes"]),
        "validation_perplexity": chosen.perplexity,
        "parameters": sum(parameter.numel() for parameter in loaded.parameters()),
        "bytes": weight_bytes(store, model),
        "tasks": {task: scores[task] for task in tasks},
        "card": {
            **protocol(result, card, loaded.dtype),
            "validation_token_digest": choosing_card["token_digest"],
            "harness": f"lm-eval {zero_shot.harness_version()}",
            "limit": limit,
            "non_finite": result.non_finite + chosen.non_finite,
        },
    }
    write_table(out / METRICS, record)


def is_standard(task: str) -> bool:
    """Whether the items of a task come from a file; the others are made from the evaluation texts."""
    return task not in zero_shot.MADE


def content_of(tasks: list[str], folder: str | None) -> dict[str, str]:
    """What the tasks depend on beside code: sha256 of the items of every standard task, and of the definition of every other.

    Raises:
        UsageError: an unknown task, or a standard one without a folder.
        InputError: a file is missing.
    """
    if unknown := sorted(set(tasks) - set(zero_shot.known())):
        raise UsageError(f"evaluation.tasks has {unknown[0]!r}, expected some of {', '.join(zero_shot.known())}")
    standard = [task for task in tasks if is_standard(task)]
    if standard and folder is None:
        raise UsageError(
            f"evaluation.tasks has {standard[0]!r}, whose items are not part of the project: set evaluation.tasks_folder to a "
            f"folder with {standard[0]}.jsonl, or take {' and '.join(task for task in zero_shot.known() if not is_standard(task))}"
        )
    paths = zero_shot.content(standard, Path(folder)) if standard and folder else {}
    definitions = {f"{task}.yaml": zero_shot.DEFINITIONS / f"{task}.yaml" for task in tasks}
    paths |= {name: path for name, path in definitions.items() if path.is_file()}
    return {name: file_digest(path, path.stat()) for name, path in paths.items()}
