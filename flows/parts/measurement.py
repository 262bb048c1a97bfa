"""The part of every flow that measures models: where it computes, and what the step `evaluate` is given."""

from collections.abc import Mapping
from typing import Any

from tasks.cache.artifact import Artifact, Store
from tasks.cache.placement import Where
from tasks.config.parameters import Parameters
from tasks.steps.evaluate import content_of, is_standard
from tasks.steps.make_items import make_items


def measurement(p: Parameters, store: Store, texts: Artifact, tokens: Mapping[str, Artifact]) -> dict[str, Any]:
    """The arguments of the step `evaluate` that are the same for every model of a run."""
    return {
        "evaluation": tokens["evaluation"],
        "validation": tokens["validation"],
        "items": make_items(store, texts) if any(not is_standard(task) for task in p.evaluation.tasks) else None,
        "length": p.data.evaluation.length,
        "stride": p.data.evaluation.stride,
        "batch_size": p.evaluation.batch_size,
        "tasks": p.evaluation.tasks,
        "limit": p.evaluation.limit,
        "tasks_folder": p.evaluation.tasks_folder,
        "tasks_content": content_of(p.evaluation.tasks, p.evaluation.tasks_folder),
        "device": device(p),
    }


def device(p: Parameters) -> Where:
    """Where to compute: `auto` is CUDA where there is one."""
    import torch

    found = p.backbone.device
    if found == "auto":
        found = "cuda" if torch.cuda.is_available() else "cpu"
    return Where(found, p.backbone.stream, p.backbone.hidden)
