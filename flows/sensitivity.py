"""Sensitivity of a model to compressing each type of matrix alone: the study that Bolaco begins with (arXiv 2405.10616, 2.2).

    python -m flows.sensitivity [section.key=value ...]

Every type (q, k, v, o, gate, up, down) is compressed in all blocks at each fraction of the list `sensitivity.compression`, everything else
stays dense, and the perplexity of the validation text is measured. All models are slices of the decomposition that the other flows use.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.sensitivity:sensitivity", show="flows.sensitivity:show"))

import sys
import time
from itertools import product
from typing import Any

from prefect import flow, unmapped

from flows.command.runner import THREADS, limit_threads, open_run_store, worker_count
from flows.parts.inputs import factorizer_of, prepare_backbone, prepare_inputs
from flows.parts.prepared import measure_calibration
from flows.parts.questions import check_calibration_images
from flows.prepare_data import prepare_texts
from flows.show import PLAIN
from mgaa.errors import UsageError
from tasks.artifacts.files import backbone_matrices
from tasks.artifacts.specs import WindowSpec
from tasks.cache.artifact import Artifact, Store
from tasks.cache.executions import record_executions
from tasks.config.compatibility import check_compatibility
from tasks.config.outputs import Output, check_outputs
from tasks.config.parameters import Parameters
from tasks.planning.preflight import preflight_search
from tasks.results.publish import Effort
from tasks.steps.allocate_point import allocate_point
from tasks.steps.measure import measure
from tasks.sweep.sensitivity_table import NAME, TypeResult, frame, publish, rows
from tasks.tracking.run import track_run

ANY = [0.5]
"""The single point of a space with one variable, whose share the budget alone decides."""


@flow(name="sensitivity", task_runner=THREADS, validate_parameters=False)
def sensitivity(parameters: Parameters) -> list[TypeResult]:
    """Compress every type of matrix alone at every fraction of `sensitivity.compression`; publish a table and a figure."""
    params, began = parameters, time.perf_counter()
    check_compatibility(params.flat(), "sensitivity")
    place = params.folder / NAME
    check_outputs(
        params, Output("the table", place.parent, [place.name + suffix for suffix in (".csv", ".png", ".svg")])
    )
    store, factorizer = open_run_store(params), factorizer_of(params)
    with (
        track_run(params, "sensitivity", "sensitivity of each type of matrix") as run,
        record_executions(store) as executions,
    ):
        backbone = prepare_backbone(params, store)
        check_calibration_images(params, store, backbone)
        types = type_sizes(store, backbone)
        wanted = [*product(types, params.sensitivity.compression)]
        spaces = [space_of_type(types, name, fraction) for name, fraction in wanted]
        for (name, fraction), space in zip(wanted, spaces, strict=True):
            try:
                preflight_search(store, backbone, factorizer, space, params.ranks.multiple)
            except UsageError as error:
                raise UsageError(
                    f"sensitivity.compression has {fraction:g}, which {name} alone does not reach at its lowest ranks: take "
                    "smaller fractions, or a smaller ranks.multiple"
                ) from error
        texts = prepare_texts(params, store)
        sections = ("calibration", "validation")
        prepared = measure_calibration(
            prepare_inputs(params, store, backbone, texts, sections=sections, factorizers=[factorizer])
        )
        validation = prepared.tokens["validation"]
        windows, device = WindowSpec(params.data.validation.length, None, params.evaluation.batch_size), prepared.device
        dense = measure(store, backbone, validation, [], None, windows=windows, device=device)
        same: dict[str, Any] = {"store": unmapped(store), "backbone": unmapped(backbone)}
        same["spectra"] = unmapped(prepared.spectra)
        with limit_threads(worker_count(params)):
            ranks = allocate_point.map(
                space=spaces, point=unmapped(ANY), multiple=params.ranks.multiple, **same
            ).result()
            measured = measure.map(
                ranks=ranks, tokens=unmapped(validation), windows=windows, device=device, **same
            ).result()
        found = [
            TypeResult(*each)
            for each in zip((n for n, _ in wanted), (f for _, f in wanted), ranks, measured, strict=True)
        ]
        table = rows(store, dense, found, types)
        publish(params.folder, table)
        values = {f"above_dense/{row['type']}/{row['compression']:g}": row["above_dense"] for row in table}
        ran = executions.collect()
        run.log_study(
            store,
            artifacts={"dense": dense, "measurement": [each.measurement for each in found]},
            tokens=prepared.tokens,
            numbers=values,
            effort=Effort.since(began, ran),
            executions=ran,
            places=[params.folder / f"{NAME}{suffix}" for suffix in (".csv", ".png", ".svg")],
        )
    return found


def type_sizes(store: Store, backbone: Artifact) -> dict[str, int]:
    """Number of parameters in all matrices of each type."""
    found: dict[str, int] = {}
    for matrix in backbone_matrices(store, backbone):
        found[matrix.role] = found.get(matrix.role, 0) + matrix.parameters
    return found


def space_of_type(types: dict[str, int], name: str, fraction: float) -> dict[str, Any]:
    """Arguments of `mgaa.search.space_of` for compressing this type alone, by this fraction of its parameters."""
    compression = fraction * types[name] / sum(types.values())
    least = min(0.2, (1 - fraction) / 2)  # below the requested share
    return {
        "compression": compression,
        "dense": [other for other in types if other != name],
        "least": least,
        "tied": {},
    }


def show(parameters: Parameters) -> None:
    """Print the last table, types as rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = frame(parameters.folder)
    grid = table.pivot(index="type", columns="compression", values="above_dense").loc[[*dict.fromkeys(table.type)]]
    found = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    found.add_column("log-perplexity above dense at")
    for fraction in grid.columns:
        found.add_column(f"{fraction:g}", justify="right")
    for name, row in grid.iterrows():
        found.add_row(f"{name} alone", *(f"{value:+.4f}" for value in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else PLAIN).print(found)
    print(f"Table   {NAME}.csv\nFigure  {NAME}.png, {NAME}.svg")
