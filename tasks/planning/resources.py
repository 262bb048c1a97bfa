"""The resource plan of a run: memory and disk that it needs, compared with those available, before anything is loaded (`mgaa.plan`)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from mgaa.blocks import hardware
from mgaa.checkpoints.folder import gguf_file
from mgaa.checkpoints.load import device_of
from mgaa.checkpoints.meta_model import load_meta_model
from mgaa.errors import ResourceError
from mgaa.plan import plan
from mgaa.plan.anchored import anchor_bytes
from mgaa.plan.layout import Layout, layout_of
from mgaa.plan.room import Peaks, Room, describe_shortage, peak_usage, remedies
from mgaa.plan.settings import Settings, StageCost
from tasks.cache.placement import Placement, place_of_hidden, should_stream
from tasks.config.parameters import Parameters

IMPORTS = 350 * 10**6
"""Bytes for later imports of a process (tracking, figures, the evaluation harness) and buffers of kernels."""

UNKNOWN = 1000
"""Assumed number of windows of a text that is evaluated as a whole, whose length is unknown before it is tokenized."""


@dataclass(frozen=True)
class PlannedRun:
    """A plan with its settings and the available resources."""

    layout: Layout
    settings: Settings
    stages: list[StageCost]
    peaks: Peaks
    room: Room

    @property
    def short(self) -> list[str]:
        """What does not fit, as phrases of a message."""
        return describe_shortage(self.peaks, self.room, self.settings)


def plan_run(params: Parameters, where: Placement, *, models: int, workers: int) -> PlannedRun:
    """The plan of `flows.compress` with these parameters.

    Args:
        models: number of compressed models, baselines included.
        workers: steps that run at a time on this machine.

    Raises:
        InputError: the backbone's config cannot be read, or its architecture has no entry.
    """
    device = device_of(str(where))
    layout = layout_of(
        load_meta_model(params.backbone.source, revision=params.backbone.revision, dtype=params.backbone.dtype)
    )
    settings = settings_of(params, where, layout, models=models, workers=workers)
    stages = plan(layout, settings)
    room = Room(
        hardware.free_memory(device),
        hardware.free_memory(torch.device("cpu")) + resident_bytes(),
        hardware.free_disk(params.store_path)
        + bytes_below(params.store_path),  # files in the store may be those that this run makes
    )
    return PlannedRun(layout, settings, stages, peak_usage(stages, settings, resident_bytes() + IMPORTS), room)


def settings_of(params: Parameters, where: Placement, layout: Layout, *, models: int, workers: int) -> Settings:
    """The settings of a plan; `auto` is resolved as the steps resolve it."""
    calibration = params.data.calibration
    samples = calibration.samples or UNKNOWN
    stream = should_stream(where, layout.weights)
    size = samples * calibration.length * layout.hidden * layout.itemsize
    every = size * (len(layout.blocks) + 1)  # inputs of all blocks (tasks/steps/differentiate.py)
    file = gguf_file(params.backbone.source, params.backbone.revision)
    texts = (params.data.evaluation, params.data.validation)
    batch = params.evaluation.batch_size
    settings = Settings(
        samples=samples,
        length=calibration.length,
        batch_size=params.statistics.batch_size,
        groups=params.statistics.groups,
        compression=params.ratios.compression,
        evaluation=tuple(((text.samples or UNKNOWN) * text.length, text.length, batch) for text in texts),
        models=models,
        workers=workers,
        shards=params.statistics.shards,
        stream=stream,
        hidden=place_of_hidden(where, size),
        gradients=params.statistics.gradients,
        states=place_of_hidden(where, every),
        to_stream=params.anchor.method == "stream",
        refinement=0 if params.refinement.refinement is None else params.refinement.refinement["steps"],
        accelerator=not where.startswith("cpu"),
        gguf=0 if file is None else file.stat().st_size,
        room=hardware.free_memory(torch.device(where)),
    )
    if params.anchor.method == "none":
        return settings
    return replace(settings, anchored=place_of_hidden(where, anchor_bytes(layout, settings)))


def refuse_what_cannot_fit(found: PlannedRun) -> None:
    """Refuse a run for which memory or disk is short by more than the error of the plan, and suggest what would fit.

    Raises:
        ResourceError: memory or disk is short.
    """
    if found.short:
        raise ResourceError(
            f"This run needs {'; and '.join(found.short)}. {suggest_remedy(found)} (python -m flows.plan shows every stage)"
        )


def suggest_remedy(found: PlannedRun) -> str:
    """The smallest change of settings with which the run fits."""
    base = resident_bytes() + IMPORTS
    without_disk = replace(found.room, disk=2**63)
    if not describe_shortage(found.peaks, without_disk, found.settings):
        return "Put the store on a larger disk with store.path=<folder>, or free space."
    for changed, settings in remedies(found.settings):
        fits = peak_usage(plan(found.layout, settings), settings, base)
        if not describe_shortage(fits, without_disk, settings):
            disk = "" if fits.disk <= found.room.disk else ", and store.path=<a folder on a larger disk>"
            return f"It fits with {' '.join(f'{key}={value}' for key, value in changed.items())}{disk}."
    return "No setting makes it fit: use a machine with more memory, or a smaller model."


def bytes_below(folder: Path) -> int:
    """Total size of the files in a folder, which need not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def resident_bytes() -> int:
    """Memory of this process without mapped files, in bytes."""
    memory: Any = psutil.Process().memory_info()
    return int(memory.rss) - int(getattr(memory, "shared", 0))
