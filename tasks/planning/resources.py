"""The plan of a run: what it will take, compared with what is there, before anything is loaded (`mgaa.plan`)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgaa.errors import ResourceError
from tasks.cache.placement import Where, place_of_hidden, streams
from tasks.config.parameters import Parameters

if TYPE_CHECKING:
    from mgaa.plan.layout import Layout
    from mgaa.plan.room import Peaks, Room
    from mgaa.plan.settings import Settings, Stage

IMPORTS = 350 * 10**6
"""Bytes that a process takes for what it imports later (tracking, figures, the evaluation harness) and for buffers of its kernels."""

UNKNOWN = 1000
"""Windows that are reckoned with where a whole text is evaluated, whose length is known once it is tokenized."""


@dataclass(frozen=True)
class Outlook:
    """A plan, with what it was made for and what is there."""

    layout: "Layout"
    settings: "Settings"
    stages: "list[Stage]"
    peaks: "Peaks"
    room: "Room"

    @property
    def short(self) -> list[str]:
        """What does not fit, in words."""
        from mgaa.plan.room import short_of

        return short_of(self.peaks, self.room, self.settings)


def outlook(p: Parameters, where: Where, *, models: int, workers: int) -> Outlook:
    """The plan of `flows.compress` with these parameters.

    Args:
        models: compressed models that are made: of the method, and of each baseline.
        workers: steps that run at a time on this machine.

    Raises:
        InputError: the backbone's config cannot be read, or its architecture has no entry.
    """
    import torch

    from mgaa.blocks import hardware
    from mgaa.checkpoints.load import device_of
    from mgaa.checkpoints.meta_model import skeleton
    from mgaa.plan import plan
    from mgaa.plan.layout import layout_of
    from mgaa.plan.room import Room, peaks

    device = device_of(str(where))
    layout = layout_of(skeleton(p.backbone.source, revision=p.backbone.revision, dtype=p.backbone.dtype))
    settings = settings_of(p, where, layout, models=models, workers=workers)
    stages = plan(layout, settings)
    room = Room(
        hardware.free_memory(device),
        hardware.free_memory(torch.device("cpu")) + resident_bytes(),
        hardware.free_disk(p.store_path) + bytes_below(p.store_path),  # what the store holds may be what this run makes
    )
    return Outlook(layout, settings, stages, peaks(stages, settings, resident_bytes() + IMPORTS), room)


def settings_of(p: Parameters, where: Where, layout: "Layout", *, models: int, workers: int) -> "Settings":
    """What a run is asked to do; what is `auto` is decided as the steps decide it."""
    import torch

    from mgaa.blocks.hardware import free_memory
    from mgaa.plan.anchored import waiting
    from mgaa.plan.settings import Settings

    calibration = p.data.calibration
    samples = calibration.samples or UNKNOWN
    stream = streams(where, layout.weights)
    size = samples * calibration.length * layout.hidden * layout.itemsize
    every = size * (len(layout.blocks) + 1)  # those in front of every block (tasks/steps/differentiate.py)
    texts = (p.data.evaluation, p.data.validation)
    batch = p.evaluation.batch_size
    settings = Settings(
        samples=samples,
        length=calibration.length,
        batch_size=p.statistics.batch_size,
        groups=p.statistics.groups,
        compression=p.ratios.compression,
        evaluation=tuple(((text.samples or UNKNOWN) * text.length, text.length, batch) for text in texts),
        models=models,
        workers=workers,
        shards=p.statistics.shards,
        stream=stream,
        hidden=place_of_hidden(where, size),
        gradients=p.statistics.gradients,
        states=place_of_hidden(where, every),
        to_stream=p.anchor.method == "stream",
        refinement=0 if p.refinement.refinement is None else p.refinement.refinement["steps"],
        accelerator=not where.startswith("cpu"),
        room=free_memory(torch.device(where)),
    )
    if p.anchor.method == "none":
        return settings
    return replace(settings, anchored=place_of_hidden(where, waiting(layout, settings)))


def refuse_what_cannot_fit(found: Outlook) -> None:
    """Stop before the work where memory or disk is clearly missing (by more than the plan may err), and name what would fit.

    Raises:
        ResourceError: as said.
    """
    if found.short:
        raise ResourceError(
            f"This run takes {'; and '.join(found.short)}. {remedy(found)} (python -m flows.plan shows every stage)"
        )


def remedy(found: Outlook) -> str:
    """The gentlest settings with which the run fits."""
    from mgaa.plan import plan
    from mgaa.plan.room import peaks, remedies, short_of

    base = resident_bytes() + IMPORTS
    without_disk = replace(found.room, disk=2**63)
    if not short_of(found.peaks, without_disk, found.settings):
        return "Put the store on a larger disk with store.path=<folder>, or make room."
    for changed, settings in remedies(found.settings):
        fits = peaks(plan(found.layout, settings), settings, base)
        if not short_of(fits, without_disk, settings):
            disk = "" if fits.disk <= found.room.disk else ", and store.path=<a folder on a larger disk>"
            return f"It fits with {' '.join(f'{key}={value}' for key, value in changed.items())}{disk}."
    return "No setting makes it fit: take a machine with more memory, or a smaller model."


def bytes_below(folder: Path) -> int:
    """Of all files in a folder, which need not be there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def resident_bytes() -> int:
    """Memory that this process takes, without pages of files."""
    import psutil  # type: ignore[import-untyped]

    memory: Any = psutil.Process().memory_info()
    return int(memory.rss) - int(getattr(memory, "shared", 0))
