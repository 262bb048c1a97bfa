"""Show the last run on one screen: the models side by side, and where everything is.

    python -m flows.show [section.key=value ...]

Reads `results/metrics.json` and `results/allocation.json` and computes nothing, so it shows the same after `dvc pull` as after a run. In a
terminal the table is fitted to its width; into a file or a pipe it is written plain and complete. The methods of other runs on the same
texts, whose results are in the folders of `output.beside`, come into the same table.
"""

if __name__ == "__main__":
    from flows.command.cli import main

    raise SystemExit(main("flows.show:show"))

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mgaa.errors import InputError
from mgaa.masking import masked
from tasks.config.parameters import Parameters, checkout_of
from tasks.figures.style import label_of
from tasks.results.publish import DENSE, UNRECOVERED

UNIFORM = "uniform"
PLAIN = 10_000
"""Columns of a table that is not printed to a terminal."""


def show(parameters: Parameters) -> None:
    """Print the table of the last run and the paths of its checkpoint, figures and records.

    Raises:
        InputError: `results/` is missing or is not what a run writes.
    """
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else PLAIN)
    folders = [parameters.results, *(parameters.folder / each for each in parameters.output.beside)]
    runs = [(read_results(folder / "metrics.json"), read_results(folder / "allocation.json")) for folder in folders]
    try:
        metrics, allocations = join_runs(runs)
        shown = [
            *tables(metrics["models"], console.width, metrics["methods"]),
            *statements(metrics, allocations),
            *answers(metrics.get("prompts", [])),
            *output_places(parameters, metrics),
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(
            f"{', '.join(map(str, folders))} is not what a run writes ({error!r}): expected metrics.json and allocation.json of one run; "
            "write them again with `python -m flows.compress`, finished steps are kept."
        ) from error
    for each in shown:
        console.print(each, soft_wrap=isinstance(each, str))


def read_results(path: Path) -> dict[str, Any]:
    """Read a file of results."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"There is no {path}: expected the results of a run; make them with `make demo` or `python -m flows.compress`, "
            "or fetch them with `dvc pull`."
        ) from error
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path} cannot be read ({error}): expected the JSON of a run; write it again with `python -m flows.compress`."
        ) from error
    return content


def join_runs(runs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Join the metrics and the allocations of runs: all models of the first, and of each other one its method.

    Raises:
        InputError: their dense models differ, or two have the same method.
    """
    metrics, allocations = dict(runs[0][0]), dict(runs[0][1])
    metrics |= {"methods": [], "runs": [each["run"] for each, _ in runs if "run" in each]}
    for other, allocated in runs:
        method = [*other["models"]][-1]
        dense, expected = (each["models"][DENSE]["perplexity"] for each in (other, metrics))
        if dense != expected or method in metrics["methods"]:
            raise InputError(
                f"output.beside names a run of {method} whose dense model has perplexity {dense:.4f}, beside "
                f"{' and '.join(metrics['methods'])} with {expected:.4f}: expected another method on the same backbone and texts; leave "
                "the folder out, or run both again."
            )
        metrics["methods"].append(method)
        metrics["models"] = {**metrics["models"], method: other["models"][method]}
        allocations[method] = allocated[method]
        said = {(each["form"], each["prompt"]): each["said"] for each in other.get("prompts", [])}
        metrics["prompts"] = [
            {**each, "said": each["said"] | said.get((each["form"], each["prompt"]), {})}
            for each in metrics.get("prompts", [])
        ]
    return metrics, allocations


def tables(models: Mapping[str, Any], width: int, methods: Sequence[str] = ()) -> Iterator[Any]:
    """Table of all models, split into several if it is too wide; those of `methods` in bold."""
    columns = [
        *{**size_columns(models), **score_columns(models), **answer_columns(models), **time_columns(models)}.items()
    ]
    while columns:
        fitting = (n for n in range(len(columns), 0, -1) if fits(table(models, columns[:n], methods), width))
        count = next(fitting, 1)
        if len(columns) - count == 1:  # none is left alone, such as one of the two columns of seconds
            count = max(1, count - 1)
        yield table(models, columns[:count], methods)
        columns = columns[count:]


def table(models: Mapping[str, Any], columns: Sequence[tuple[str, Sequence[str]]], methods: Sequence[str]) -> Any:
    """Table with a row per model."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    grid.add_column("model", no_wrap=True)
    for header, _ in columns:
        grid.add_column(header, justify="right", no_wrap=True)
    for index, name in enumerate(models):
        style = "bold" if name in methods else ""
        grid.add_row(label_of(name), *(cells[index] for _, cells in columns), style=style)
    return grid


def fits(grid: Any, width: int) -> bool:
    """Tell whether a table can be shown without breaking its cells."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(width=PLAIN)
    return Measurement.get(console, console.options, grid).maximum <= width


def size_columns(models: Mapping[str, Any]) -> dict[str, list[str]]:
    """Columns for the size of a model and its perplexity."""
    return {
        "linears\nremoved": [f"{100 * m['compression']:.1f} %" for m in models.values()],
        "model\nremoved": [f"{100 * m['model_compression']:.1f} %" for m in models.values()],
        "parameters": [f"{m['parameters']:,}" for m in models.values()],
        "MB on\ndisk": [f"{m['bytes'] / 1e6:.2f}" for m in models.values()],
        "perplexity": [format_measured(m["perplexity"], m["perplexity_stderr"]) for m in models.values()],
    }


def score_columns(models: Mapping[str, Any]) -> dict[str, list[str]]:
    """Column per task: the accuracy."""
    columns = {}
    for task in models[DENSE]["tasks"]:
        results = [m["tasks"][task] for m in models.values()]
        columns[task] = [format_measured(each["acc"], each["stderr"], 3) for each in results]
    return columns


def answer_columns(models: Mapping[str, Any]) -> dict[str, list[str]]:
    """Columns per set of questions: the accuracy, and the perplexity of captions."""
    columns = {}
    for name, first in models[DENSE].get("questions", {}).items():
        results = [m["questions"][name] for m in models.values()]
        if first["n"]:
            columns[f"{name}\naccuracy"] = [format_measured(each["accuracy"], each["stderr"], 3) for each in results]
        if first["captions"]:
            columns[f"{name}\ncaptions"] = [
                format_measured(each["caption_perplexity"], each["caption_perplexity_stderr"], 3) for each in results
            ]
    return columns


def time_columns(models: Mapping[str, Any]) -> dict[str, list[str]]:
    """Columns for the time of the steps that made a model, whether they ran in this run or in an earlier one."""
    return {
        f"seconds\n{part}": [f"{m['seconds'][part]:.1f}" for m in models.values()] for part in ("compress", "evaluate")
    }


def format_measured(value: float, error: float | None, digits: int = 2) -> str:
    """Format a value with its standard error."""
    return f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {error:.{digits}f}"


def statements(metrics: Mapping[str, Any], allocations: Mapping[str, Any]) -> Iterator[str]:
    """Statements below the table: that the budgets are equal, the method's loss relative to uniform's, the cost of the run."""
    models, (final, *others) = metrics["models"], metrics["methods"]
    method = UNRECOVERED if UNRECOVERED in models else final  # the model with the same budget as the others
    above = {name: math.log(each["perplexity"] / models[DENSE]["perplexity"]) for name, each in models.items()}
    kept = [
        f"{label_of(name)} {each['linear_parameters']:,} ({each['slack']:,} unused)"
        for name, each in allocations.items()
        if name != final or method == final
    ]
    yield f"Equal budget of {allocations[method]['budget']:,} linear parameters: {', '.join(kept)}."
    for name in (method, *others) if UNIFORM in models else ():
        share = f": {100 * above[name] / above[UNIFORM]:.0f} % of uniform's loss" if above[UNIFORM] > 0 else ""
        if name != UNIFORM:
            yield f"Log-perplexity above dense: {label_of(name)} {above[name]:+.4f}, uniform {above[UNIFORM]:+.4f}{share}."
    if method != final:
        added = allocations[final]["linear_parameters"] - allocations[method]["linear_parameters"]
        yield f"Recovery: from {above[method]:+.4f} to {above[final]:+.4f}, with {added:,} linear parameters more."
    for name, compared in metrics.get("comparison", {}).items():
        for model, each in compared.items():
            yield (
                f"Accuracy on {name} above uniform: {label_of(model)} {100 * each['value']:+.1f} points "
                f"(95 %: {100 * each['low']:+.1f} to {100 * each['high']:+.1f})."
            )
    if warning := metrics["card"].get("calibration", {}).get("warning"):
        yield f"Warning: {warning}."
    if latency := allocations[method].get("latency"):
        shares = (
            f"{seconds['compressed'] / seconds['dense']:.2f} at {tokens}"
            for tokens, seconds in latency["predicted_seconds"].items()
        )
        yield (
            f"Predicted time of {label_of(method)}'s linears over dense on {latency['name']}, by tokens per call: {', '.join(shares)}."
        )
    for run in metrics["runs"]:
        yield (
            f"The run: {run['executed']} steps executed and {run['reused']} reused in {run['wall_seconds']:.1f} s "
            f"({run['work_seconds']:.1f} s of work), {run['peak_memory_bytes'] / 1e9:.2f} GB of memory at most."
        )


def answers(prompts: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What every model makes of the prompts of the run, each on one line."""
    for each in prompts:
        yield f"\n{'Asked' if each['form'] == 'chat' else 'Given'}: {each['prompt']}"
        width = max(len(label_of(name)) for name in each["said"])
        yield from (f"  {label_of(name):{width}}  {' '.join(text.split())}" for name, text in each["said"].items())


def output_places(parameters: Parameters, metrics: Mapping[str, Any]) -> Iterator[str]:
    """Paths of the checkpoint, the figures and the records, and the commands that open them."""
    method, *others = metrics["methods"]
    kind = "AutoModelForImageTextToText" if "calibration" in metrics["card"] else "AutoModelForCausalLM"
    checkpoint = metrics["models"][method]["checkpoint"]
    folder = programs(parameters.folder)
    also = "".join(f"\n            {metrics['models'][name]['checkpoint']} ({label_of(name)})" for name in others)
    yield f"""
Checkpoint  {checkpoint} ({label_of(method)}); load it with
              import mgaa
              from transformers import {kind}
              model = {kind}.from_pretrained("{checkpoint}"){also}
Report      {parameters.output.results}/report.html
Figures     {parameters.output.results}/figures/*.png, and as vectors *.svg
MLflow      {mlflow(parameters, folder)}
Prefect     PREFECT_HOME={os.environ.get("PREFECT_HOME", "~/.prefect")} {folder}prefect server start"""


def mlflow(parameters: Parameters, folder: str) -> str:
    """Command or address that opens the record of the run."""
    if parameters.tracking_uri.startswith("http"):
        return masked(parameters.tracking_uri)
    own = checkout_of(parameters.folder) == parameters.folder.absolute()
    uri = masked(parameters.tracking.uri if own else parameters.tracking_uri)
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {folder}mlflow ui --backend-store-uri {uri} --workers 1"


def programs(folder: Path) -> str:
    """Path of this environment's programs, as typed in `folder`."""
    place = Path(sys.prefix) / "bin"
    return f"{place.relative_to(folder)}/" if place.is_relative_to(folder) else f"{place}/"
