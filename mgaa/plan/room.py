"""Whether a run fits: the most that its stages take, beside what is there, and the settings that take less."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mgaa.plan.settings import Settings, StageCost


@dataclass(frozen=True)
class Room:
    """Bytes that are there: free memory of the device and of the host, and free disk."""

    device: int
    host: int
    disk: int


@dataclass(frozen=True)
class Peaks:
    """The most that a run takes of each.

    Attributes:
        device, host: bytes of memory; on a CPU all of it is `host`.
        disk: bytes.
        stages: which stage takes the most of the device, of the host.
    """

    device: int
    host: int
    disk: int
    stages: tuple[str, str]


def peak_usage(stages: Sequence[StageCost], settings: Settings, base: int) -> Peaks:
    """What the stages of a run take together; `base` is what a process takes before it has loaded anything."""

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
"""What a prediction may be too high by (docs/performance.md): so much more than there is does not refuse a run."""


def describe_shortage(found: Peaks, room: Room, settings: Settings) -> list[str]:
    """What does not fit, in words; empty where everything does."""
    wanted = [
        (found.device if settings.accelerator else 0, room.device, f"on the device in '{found.stages[0]}'"),
        (found.host, room.host, f"of memory in '{found.stages[1]}'"),
        (found.disk, room.disk, "of disk"),
    ]
    return [
        f"{gigabytes(needed)} {what}, {gigabytes(free)} are free"
        for needed, free, what in wanted
        if (1 - ERROR) * needed > free
    ]


def remedies(settings: Settings) -> Iterator[tuple[dict[str, object], Settings]]:
    """Settings that take less, the gentlest first, each with those before it: what to set, and the settings it makes."""
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
    """A count of bytes as people read it."""
    return f"{count / 1e9:.2f} GB"
