"""The part of every flow that measures models: where it computes, and what the step `evaluate` is given."""

from collections.abc import Mapping
from typing import Any

from tasks.cache.artifact import Artifact, Store
from tasks.cache.placement import Placement
from tasks.config.parameters import Parameters
from tasks.steps.evaluate import content_of, is_standard
from tasks.steps.make_items import make_items


def evaluation_arguments(
    params: Parameters, store: Store, texts: Artifact, tokens: Mapping[str, Artifact]
) -> dict[str, Any]:
    """The arguments of the step `evaluate` that are the same for every model of a run."""
    return {
        "evaluation": tokens["evaluation"],
        "validation": tokens["validation"],
        "items": make_items(store, texts) if any(not is_standard(task) for task in params.evaluation.tasks) else None,
        "length": params.data.evaluation.length,
        "stride": params.data.evaluation.stride,
        "batch_size": params.evaluation.batch_size,
        "tasks": params.evaluation.tasks,
        "limit": params.evaluation.limit,
        "tasks_folder": params.evaluation.tasks_folder,
        "tasks_content": content_of(params.evaluation.tasks, params.evaluation.tasks_folder),
        "device": resolve_device(params),
    }


def resolve_device(params: Parameters) -> Placement:
    """Where to compute: `auto` is CUDA where there is one."""
    import torch

    found = params.backbone.device
    if found == "auto":
        found = "cuda" if torch.cuda.is_available() else "cpu"
    return Placement(found, params.backbone.stream, params.backbone.hidden)
