"""The resource plan of flows.compress on this machine: memory, disk, operations and time of every stage, before a run starts.

    python -m flows.plan [section.key=value ...]

Only the config of the backbone is read, so `backbone.source` may be a folder with nothing but a `config.json`. Memory and disk are computed
from shapes (`mgaa.plan`); the speed of this machine is measured in a few seconds. Exit code 5 if the run cannot fit.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.plan:plan"))


import torch
from rich.console import Console
from rich.table import Table

from flows.command.runner import worker_count
from flows.parts.device import resolve_device
from mgaa.blocks.hardware import measure_rates
from mgaa.plan.room import gigabytes
from tasks.config.parameters import Parameters
from tasks.planning.recipes import recipes
from tasks.planning.resources import PlannedRun, plan_run, refuse_what_cannot_fit


def plan(parameters: Parameters) -> None:
    """Print the resources of every stage, and refuse a run that cannot fit."""
    where = resolve_device(parameters)
    found = plan_run(parameters, where, models=len(recipes(parameters)), workers=worker_count(parameters))
    measured = measure_rates(torch.device(where), getattr(torch, dtype_of(found)), parameters.store_path)
    show(found, where, [stage.seconds(measured) for stage in found.stages])
    refuse_what_cannot_fit(found)


def dtype_of(found: PlannedRun) -> str:
    """A dtype of the same size as the weights."""
    return {2: "bfloat16", 4: "float32"}.get(found.layout.itemsize, "float64")


def show(found: PlannedRun, where: str, seconds: list[float]) -> None:
    """Print the table and its totals."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("stage", "device", "host", "disk", "work", "time"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage, took in zip(found.stages, seconds, strict=True):
        operations = sum(count for kind, count in stage.operations.items() if kind != "eigen")
        table.add_row(
            stage.name,
            gigabytes(stage.device),
            gigabytes(stage.host),
            gigabytes(stage.disk + stage.scratch),
            f"{operations / 1e12:,.2f} T",
            duration(took),
        )
    console = Console(highlight=False)
    console.print(table)
    peaks, room, settings = found.peaks, found.room, found.settings
    blocks = "stay in their files (streamed)" if settings.stream else "are in memory"
    console.print(
        f"\n{len(found.layout.blocks)} blocks {blocks}; hidden states wait on the {settings.hidden}.", soft_wrap=True
    )
    if settings.accelerator:
        console.print(f"{where}: {gigabytes(peaks.device)} at most, {gigabytes(room.device)} free.", soft_wrap=True)
    console.print(
        f"Memory: {gigabytes(peaks.host)} at most (the process included, in '{peaks.stages[1]}'), {gigabytes(room.host)} free. "
        f"Disk: {gigabytes(peaks.disk)}, {gigabytes(room.disk)} free. Time: {duration(sum(seconds))} by the rates of this machine.",
        soft_wrap=True,
    )


def duration(seconds: float) -> str:
    """Format a time for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
