"""The device on which flows compute."""

from tasks.cache.placement import Placement
from tasks.config.parameters import Parameters


def resolve_device(params: Parameters) -> Placement:
    """The device of `backbone.device`; `auto` is CUDA where there is one."""
    import torch

    found = params.backbone.device
    if found == "auto":
        found = "cuda" if torch.cuda.is_available() else "cpu"
    return Placement(found, params.backbone.stream, params.backbone.hidden)
