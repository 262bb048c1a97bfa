"""Check whether a run fits: the peak of its stages against the free resources, and the settings that need less."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mgaa.plan.settings import Settings, StageCost


@dataclass(frozen=True)
class Room:
    """Free bytes: memory of the device and of the host, and disk."""

    device: int
    host: int
    disk: int


@dataclass(frozen=True)
class Peaks:
    """Peak usage of a run.

    Attributes:
        device, host: bytes of memory; on a CPU all of it is `host`.
        disk: bytes.
        stages: the stage with the peak on the device, and on the host.
    """

    device: int
    host: int
    disk: int
    stages: tuple[str, str]


def peak_usage(stages: Sequence[StageCost], settings: Settings, base: int) -> Peaks:
    """Compute the peak usage over the stages of a run; `base` is the memory of a process before it has loaded anything."""

    def on_device(stage: StageCost) -> int:
        return stage.device if settings.accelerator else 0

    def on_host(stage: StageCost) -> int:
        return base + stage.host + (0 if settings.accelerator else stage.device)

    left, disk = 0, 0
    for stage in stages:
        left += stage.disk
        disk = max(disk, left + stage.scratch)
    first, second = max(stages, key=on_device), max(stages, key=on_host)
    return Peaks(on_device(first), on_host(second), disk, (first.name, second.name))


ERROR = 0.15
"""Relative error by which a prediction may be too high (docs/performance.md): an excess within it does not refuse a run."""


def describe_shortage(peaks: Peaks, room: Room, settings: Settings) -> list[str]:
    """Describe the shortages in words; empty where everything fits."""
    needs = [
        (peaks.device if settings.accelerator else 0, room.device, f"on the device in '{peaks.stages[0]}'"),
        (peaks.host, room.host, f"of memory in '{peaks.stages[1]}'"),
        (peaks.disk, room.disk, "of disk"),
    ]
    return [
        f"{gigabytes(needed)} {what}, {gigabytes(free)} are free"
        for needed, free, what in needs
        if (1 - ERROR) * needed > free
    ]


def remedies(settings: Settings) -> Iterator[tuple[dict[str, object], Settings]]:
    """Yield settings that need less, the gentlest first, each on top of those before it.

    Each item is the parameters to set, and the resulting settings.
    """
    changed: dict[str, object] = {}
    steps: list[tuple[str, str, Any]] = [
        ("stream", "backbone.stream", True),
        ("hidden", "backbone.hidden", "host" if settings.accelerator else "disk"),
        ("hidden", "backbone.hidden", "disk"),
        ("shards", "statistics.shards", 1),
        ("workers", "runner.workers", 1),
        ("batch_size", "statistics.batch_size", 1),
        (
            "evaluation",
            "evaluation.batch_size",
            tuple((tokens, length, 1) for tokens, length, _ in settings.evaluation),
        ),
    ]
    for name, key, value in steps:
        if getattr(settings, name) != value:
            settings = replace(settings, **{name: value})
            if name == "hidden":
                settings = replace(settings, states=value, anchored=settings.anchored and value)
            changed[key] = {"stream": "always", "evaluation": 1}.get(name, value)
            yield dict(changed), settings


def gigabytes(count: int) -> str:
    """Format a number of bytes for people."""
    return f"{count / 1e9:.2f} GB"
