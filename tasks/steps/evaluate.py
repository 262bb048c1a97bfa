"""Step 10, evaluate: perplexity, bits per byte and zero-shot tasks of one model, with the evaluation card.

What takes time is measured by steps of their own, once per section of the texts and once per source of items
(tasks/steps/measure_perplexity.py, tasks/steps/score_tasks.py); here their tables are joined.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts.files import METRICS, PERPLEXITY, TASK_SCORES, read_table, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step


@step(kind="metrics")
def evaluate(
    out: Path,
    store: Store,
    evaluation: Artifact,
    validation: Artifact,
    scores: Sequence[Artifact],
    *,
    tasks: Sequence[str],
    limit: int | None,
    harness: str,
) -> None:
    """Join the measurements of one model.

    Args:
        evaluation, validation: artifact `perplexity`; the second is for choices, and reported apart.
        scores: artifacts `task_scores`, which hold the `tasks`.
        limit: of the items of each task.
        harness: name and version of what scores the tasks.
    """
    measured, chosen = (read_table(store, each, PERPLEXITY) for each in (evaluation, validation))
    scored: dict[str, Any] = {}
    for each in scores:
        scored |= read_table(store, each, TASK_SCORES)
    begun = {task: scored[task].pop("bos_rule") for task in tasks}
    error = measured["nll_stderr"]
    record = {
        "perplexity": measured["perplexity"],
        "perplexity_stderr": None if error is None else measured["perplexity"] * error,
        "nll": measured["nll"],
        "nll_stderr": error,
        "bits_per_byte": measured["bits_per_byte"],
        "validation_perplexity": chosen["perplexity"],
        "parameters": measured["parameters"],
        "bytes": measured["bytes"],
        "tasks": {task: scored[task] for task in tasks},
        "card": {
            **measured["card"],
            "validation_token_digest": chosen["card"]["token_digest"],
            "harness": harness,
            "limit": limit,
            **({"task_bos_rules": begun} if begun else {}),
            "non_finite": measured["card"]["non_finite"] + chosen["card"]["non_finite"],
        },
    }
    write_table(out / METRICS, record)
