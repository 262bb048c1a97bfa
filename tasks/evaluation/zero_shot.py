"""Zero-shot tasks through the lm-evaluation-harness, on a model in memory and on local files.

The harness decides what a task is: prompts, choices, metrics. Ours are defined in `definitions/`, the standard ones by the harness's
own task files, which a generated file includes and points to `<folder>/<task>.jsonl` instead of the Hub. So the numbers are those of
the official task, and nothing is fetched.

What differs from the harness's command line, each because the record must be exact:
- `add_bos_token`, where it is true, puts the beginning mark before every context, also of a tokenizer that does not add it by itself; where
  nothing is said, contexts of the standard tasks are those of the harness, and the tasks that are made of our texts have the mark as in
  perplexities (`mgaa.inputs.tokens`);
- log-softmax in float32, whatever the model's dtype;
- standard errors are analytic: `s / sqrt(n)` for a mean, and by the delta method for `perplexity = exp(-mean)`;
- contexts that were cut to fit the model are counted, and a log-likelihood which is not finite is an error.

A task that shows images (`doc_to_image` in its definition) is for vision-language models, and asks them as `mgaa.evaluation.answering` does
(tasks/evaluation/lm_eval_image_model.py); its items come from the user, like those of the standard tasks.

The harness is imported on first use (about 2 s), never when this module is.
"""

import importlib.metadata
import importlib.resources
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mgaa.errors import InputError, NumericalError, UsageError
from tasks.data.questions import read_question_file
from tasks.evaluation.scorable import check_images, check_texts, load_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mgaa.models.processors import Processor

DEFINITIONS = Path(__file__).parent / "definitions"

OFFICIAL = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "mathqa": "mathqa/mathqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "winogrande": "winogrande/default.yaml",
}
"""Task -> file of the harness, under `lm_eval/tasks`."""


MADE = ("continuation", "last_word")
"""The tasks whose items are made from the evaluation texts (`demo.tasks`); those of all others are files."""


def known_tasks() -> list[str]:
    """The tasks that can be run: ours and the standard ones."""
    return sorted({path.stem for path in DEFINITIONS.glob("*.yaml")} | OFFICIAL.keys())


def shows_images(task: str) -> bool:
    """Whether the items of a task have images."""
    path = DEFINITIONS / f"{task}.yaml"
    return path.is_file() and "doc_to_image" in yaml.safe_load(path.read_text(encoding="utf-8"))


def task_files(tasks: Sequence[str], folder: Path) -> dict[str, Path]:
    """Every file in `folder` that these tasks read, by name: the items, and their images.

    Raises:
        UsageError, InputError: as `item_files`, and items with images that do not have their form.
    """
    found = {}
    for task, path in item_files(tasks, folder).items():
        found[path.name] = path
        for record in read_question_file(path) if shows_images(task) else ():
            if record["image"] is not None:
                found[record["image"]] = folder / record["image"]
    return found


def item_files(tasks: Sequence[str], folder: Path) -> dict[str, Path]:
    """The item file of every task.

    Raises:
        UsageError: an unknown task, or one that is named twice.
        InputError: a file that is not there.
    """
    unknown = [task for task in tasks if task not in known_tasks()]
    if unknown or len(set(tasks)) < len(tasks):
        raise UsageError(f"The tasks are {', '.join(tasks)}; expected each once, out of: {', '.join(known_tasks())}.")
    found = {task: folder / f"{task}.jsonl" for task in tasks}
    missing = [path.name for path in found.values() if not path.is_file()]
    if missing:
        there = ", ".join(sorted(path.name for path in folder.glob("*.jsonl"))) or "nothing"
        raise InputError(
            f"The items {', '.join(missing)} are not in {folder}; there is: {there}: add the files or drop the tasks."
        )
    return found


def harness_version() -> str:
    """The version of lm-eval, for the evaluation card."""
    return importlib.metadata.version("lm-eval")


def run_tasks(
    model: "PreTrainedModel",
    processor: "Processor",
    tasks: Sequence[str],
    *,
    folder: Path,
    limit: int | None = None,
    batch_size: int = 16,
    max_length: int | None = None,
    add_bos_token: bool | None = None,
) -> dict[str, dict[str, Any]]:
    """Run `tasks` on `model`.

    Args:
        model: a causal language model of transformers, or a vision-language model, on its device.
        processor: its tokenizer, or its processor.
        tasks: names out of `known_tasks()`.
        folder: holds `<task>.jsonl` for every task, in the field names of the task's data set on the Hub.
        limit: the first so many items of each task; None takes all.
        batch_size: requests per forward pass.
        max_length: tokens of context; None asks the model. Longer contexts lose their beginning, which is counted.
        add_bos_token: whether contexts begin with the tokenizer's beginning mark; None: those of standard tasks where the tokenizer itself
            adds it, as in the harness, and those that are made of our texts where it has one, as in perplexities.

    Returns:
        Task -> each metric with its standard error (`stderr` that of `acc`, else `<metric>_stderr`; None for a single item), `n` items, the
        `version` of the task, `truncated` requests, the `bos_rule` in words, and `non_finite` log-likelihoods (always 0, because one of
        them is an error). The exact match of what is generated is an `acc`.

    Raises:
        UsageError: an unknown task, a limit below one, or a task with images for a model that does not see.
        InputError: items that are missing or do not fit their task, or an image that cannot be opened.
        NumericalError: a log-likelihood or a logit is not finite.
    """
    files = item_files(tasks, folder)
    if not tasks:
        return {}
    if limit is not None and limit < 1:
        raise UsageError(f"The limit is {limit} items per task, expected at least 1, or null for all.")
    forms = {task: (shows_images(task), _mark_of(task, processor, add_bos_token)) for task in tasks}
    sizes = {"batch_size": batch_size, "max_length": max_length}
    harnesses = {form: _harness(model, processor, *form, folder, sizes) for form in dict.fromkeys(forms.values())}
    with tempfile.TemporaryDirectory() as scratch:
        loaded = _load(files, Path(scratch))
        return {name: _run(harnesses[forms[name]], name, task, limit) for name, task in loaded.items()}


def _mark_of(task: str, processor: "Processor", add_bos_token: bool | None) -> bool | None:
    """Whether the contexts of a task begin with the beginning mark; None leaves it to the tokenizer."""
    from mgaa.models.processors import tokenizer_of

    if add_bos_token is None and task in MADE:
        return tokenizer_of(processor).bos_token_id is not None
    return add_bos_token


def _harness(
    model: "PreTrainedModel",
    processor: "Processor",
    shows: bool,
    mark: bool | None,
    folder: Path,
    sizes: Mapping[str, Any],
) -> Any:
    """The model as the harness sees it, in tasks that show images or in the others."""
    from mgaa.models.architectures import is_multimodal
    from mgaa.models.processors import tokenizer_of
    from tasks.evaluation.lm_eval_model import InMemoryLM

    if not shows:
        return InMemoryLM(model, tokenizer_of(processor), add_bos_token=mark, **sizes)
    if tokenizer_of(processor) is processor or not is_multimodal(model.config):
        raise UsageError(
            f"The tasks {', '.join(filter(shows_images, known_tasks()))} show images, which this {model.config.model_type} with its "
            f"{type(processor).__name__} does not see: leave them out of `evaluation.tasks`, or give a model that sees, with its processor."
        )
    from tasks.evaluation.lm_eval_image_model import InMemoryVLM

    return InMemoryVLM(model, processor, folder=folder, **sizes)


def _load(files: Mapping[str, Path], scratch: Path) -> dict[str, Any]:
    """The harness's task objects, with items that can all be scored; data set caches go to `scratch`."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)

    def load(name: str, path: Path) -> Any:
        definition = scratch / f"{name}-{path.stem}.yaml"
        definition.write_text(yaml.safe_dump(_definition(name, path.resolve(), scratch)))
        return manager.load([str(definition)])["tasks"][name]

    loaded = {}
    for name, path in files.items():
        if shows_images(name):
            check_images(name, path)
        check_texts(path)
        task = load_task(name, path, partial(load, name))
        for aggregation in task.aggregation().values():
            _standard_error(
                aggregation.__name__, [0.0, 0.0]
            )  # refuses one that it does not know, before anything is scored
        if task.config.num_fewshot is None:
            task.set_config(key="num_fewshot", value=0)
        loaded[name] = task
    return loaded


def _definition(name: str, path: Path, scratch: Path) -> dict[str, Any]:
    """A task file that includes the original and replaces where its items come from."""
    own = DEFINITIONS / f"{name}.yaml"
    original = own if own.exists() else importlib.resources.files("lm_eval") / "tasks" / OFFICIAL[name]
    return {
        "include": str(original),
        "task": name,
        "tag": None,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(scratch / "cache")},
        "training_split": None,
        "validation_split": None,
        "fewshot_split": None,
        "test_split": "test",
    }


def _run(harness: Any, name: str, task: Any, limit: int | None) -> dict[str, Any]:
    from lm_eval.evaluator import evaluate

    harness.doing, harness.truncated = f"zero-shot {name}", 0
    outcome = evaluate(lm=harness, task_dict={"tasks": {name: task}}, limit=limit, bootstrap_iters=0, log_samples=True)
    samples = outcome["samples"][name]
    if task.OUTPUT_TYPE != "generate_until":
        _check_finite(name, samples)
    found: dict[str, Any] = {}
    for metric, aggregation in task.aggregation().items():
        values = [float(sample[metric]) for sample in samples]
        own = "acc" if metric == "exact_match" else metric
        found[own] = float(outcome["results"][name][f"{metric},none"])
        found["stderr" if own == "acc" else f"{own}_stderr"] = _standard_error(aggregation.__name__, values)
    return found | {
        "n": len(samples),
        "version": outcome["versions"][name],
        "truncated": harness.truncated,
        "bos_rule": harness.bos_rule,
        "non_finite": 0,
    }


def _check_finite(name: str, samples: Sequence[Mapping[str, Any]]) -> None:
    likelihoods = [answer[0] for sample in samples for answers in sample["resps"] for answer in answers]
    wrong = sum(not math.isfinite(each) for each in likelihoods)
    if wrong:
        raise NumericalError(
            f"{wrong} of {len(likelihoods)} log-likelihoods of {name} are not finite, expected 0: check the weights, or load the model in "
            "bfloat16 or float32 (`backbone.dtype`)."
        )


def _standard_error(aggregation: str, values: Sequence[float]) -> float | None:
    """Of a mean, or of `exp(-mean)`; the harness's own are bootstrapped for the latter."""
    if len(values) < 2:
        return None
    error = statistics.stdev(values) / math.sqrt(len(values))
    if aggregation == "perplexity":
        return math.exp(-statistics.fmean(values)) * error
    if aggregation == "mean":
        return error
    raise UsageError(
        f"No standard error is known for the aggregation {aggregation}; expected mean or perplexity: change the task's file."
    )
