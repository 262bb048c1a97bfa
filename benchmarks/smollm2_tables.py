"""Tables of `benchmarks/smollm2.py`: one per calibration text and compression, the zero-shot tasks, and every cell as CSV.

Increases are of log-perplexity over dense, in nats, with the 95 % interval of a paired bootstrap over windows
(`tasks/evaluation/bootstrap.py`). Shares are of the increase of the run's own uniform rows: `of whitened` of SVD-LLM's factors, `of afm` of
MGAA's factors. ▼ is better than uniform `afm` beyond the interval of the paired difference, ▲ worse, ≈ undecided.
"""

import csv
import io
import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.proof_tables import head, interval, row, turned
from tasks.evaluation.bootstrap import verdict

UNIFORM = {"whitened": "uniform-whitened", "afm": "uniform-afm"}
TEXTS = {"wikitext2": "WikiText-2", "c4": "C4"}
MARKS = {"better": "▼", "worse": "▲", "undecided": "≈"}
BOUNDS = ("", "_low", "_high")
OF_TEXT = (
    "perplexity",
    *(f"increase{bound}" for bound in BOUNDS),
    *(f"of_{name}" for name in UNIFORM),
    *(f"minus_{name}{bound}" for name in UNIFORM for bound in BOUNDS),
)
COLUMNS = (
    *("calibration", "compression", "method"),
    *(f"{text}_{column}" for text in TEXTS for column in OF_TEXT),
    *("removed", "cpu_seconds", "memory_mb"),
)
Cells = Mapping[str, Mapping[str, Any]]
"""Cells of one compression by method."""


def tables(content: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    lines = []
    for calibration, record in content.get("cells", {}).items():
        for compression, cells in turned({"cells": record}).items():
            lines += ["", f"### {compression}, calibrated on {TEXTS.get(calibration, calibration)}", ""]
            lines += _table(cells, content["dense"])
    if "tasks" in content:
        lines += ["", "### Zero-shot tasks", "", *_tasks(content["tasks"])]
    return "\n".join(lines[1:])


def _table(cells: Cells, dense: Mapping[str, Any]) -> Iterator[str]:
    of_text = ("", "increase", "of whitened", "of afm")
    yield from head(
        [
            "method",
            *(f"{text} {column}".strip() for text in TEXTS.values() for column in of_text),
            "removed",
            "CPU s",
            "peak GB",
        ]
    )
    yield row(
        ["dense", *(each for text in TEXTS for each in (f"{math.exp(dense[text]['nll']):.2f}", "", "", "")), "", "", ""]
    )
    for method, cell in cells.items():
        if "error" in cell:
            yield row([method, "fails", *[""] * (2 * len(of_text) + 2)])
            continue
        entries = [each for text in TEXTS for each in _of_text(method, cells, dense, text)]
        cost = [f"{cell['cpu_seconds']:.0f}", f"{cell['memory'] / 1e9:.1f}"]
        yield row([method, *entries, f"{cell['removed']:.4f}", *cost])


def _of_text(method: str, cells: Cells, dense: Mapping[str, Any], text: str) -> list[str]:
    cell, afm = cells[method], cells.get(UNIFORM["afm"], {})
    above = interval(cell, dense, text)
    mark = f" {MARKS[verdict(interval(cell, afm, text))]}" if text in afm and cell is not afm else ""
    shares = [
        f"{share:.0%}" if (share := _share(cell, cells.get(name), dense, text)) is not None else ""
        for name in UNIFORM.values()
    ]
    return [
        f"{math.exp(cell[text]['nll']):.2f}",
        f"{above.value:.3f} ({above.low:.3f} to {above.high:.3f}){mark}",
        *shares,
    ]


def _share(
    cell: Mapping[str, Any], uniform: Mapping[str, Any] | None, dense: Mapping[str, Any], text: str
) -> float | None:
    """Increase as a fraction of that of a uniform row; None if there is none."""
    if uniform is None or text not in uniform:
        return None
    own, other = (each[text]["nll"] - dense[text]["nll"] for each in (cell, uniform))
    return float(own / other)


def _tasks(answers: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Accuracy with its standard error, in per cent, by task, and the mean of all."""
    tasks = [each for each in answers["dense"] if all(each in found for found in answers.values())]
    yield from head(["task", "items", *answers])
    for task in tasks:
        found = [each[task] for each in answers.values()]
        yield row([task, str(found[0]["n"]), *(f"{each['acc']:.1%} ± {each['stderr']:.1%}" for each in found)])
    means = [statistics.fmean(found[task]["acc"] for task in tasks) for found in answers.values()]
    errors = [math.hypot(*(found[task]["stderr"] for task in tasks)) / len(tasks) for found in answers.values()]
    yield row(["mean", "", *(f"{mean:.1%} ± {error:.1%}" for mean, error in zip(means, errors, strict=True))])


def cells_as_csv(content: Mapping[str, Any]) -> str:
    """Every cell as CSV; one that failed has its error in the place of the first perplexity, and what was not measured is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerow(["", "0", "dense", *_entries(content["dense"], {}, content["dense"])])
    for calibration, record in content.get("cells", {}).items():
        for compression, cells in turned({"cells": record}).items():
            for method, cell in cells.items():
                writer.writerow([calibration, compression, method, *_entries(cell, cells, content["dense"])])
    return text.getvalue()


def _entries(cell: Mapping[str, Any], cells: Cells, dense: Mapping[str, Any]) -> list[str]:
    if "error" in cell:
        return [cell["error"], *[""] * (len(COLUMNS) - 4)]
    found = []
    for text in TEXTS:
        found.append(f"{math.exp(cell[text]['nll']):.3f}")
        found += _difference(cell, dense, text)
        shares = [_share(cell, cells.get(name), dense, text) for name in UNIFORM.values()]
        found += ["" if share is None else f"{share:.3f}" for share in shares]
        for name in UNIFORM.values():
            found += _difference(cell, cells.get(name), text)
    cost = [f"{cell[key] / unit:.0f}" if key in cell else "" for key, unit in (("cpu_seconds", 1), ("memory", 1e6))]
    return [*found, f"{cell['removed']:.4f}", *cost]


def _difference(cell: Mapping[str, Any], reference: Mapping[str, Any] | None, text: str) -> list[str]:
    """The paired difference and the bounds of its interval, in nats."""
    if reference is None or reference is cell or text not in reference:
        return ["", "", ""]
    found = interval(cell, reference, text)
    return [f"{value:.4f}" for value in (found.value, found.low, found.high)]
