"""LoRAP and MGAA, without and with the same recovery, and uniform: the tables of docs/results.md, by the flow that users run.

    python benchmarks/recovery.py [--only METHOD:TUNE[,METHOD:TUNE ...]] NAME=MODEL:TEXT [NAME=MODEL:TEXT ...] [section.key=value ...]

For each backbone and compression: `python -m flows.compress` (in this process) by each method with recovery of 300 steps of 16 sequences,
tuning the product and tuning the factors, or those of `--only`, where TUNE may also be `diagonals` (with the rank, the rate and the
micro-batches of Bolaco's code). Of `TEXT` (a file, or `demo`: its splits) the first 40 % of the documents calibrate and are tuned on, the
next 20 % choose the best state, the last 40 % are evaluated. Cells are perplexities; steps that an earlier run has finished are reused.
"""

import json
import sys
from pathlib import Path
from typing import Any

from flows.compress import compress
from tasks.config.parameters import load_parameters

TARGETS = (0.2, 0.5)
WANTED = ["mgaa:product", "mgaa:factors", "lorap:product", "lorap:factors"]
RECOVERY = ("recovery.method=lora", "recovery.steps=300", "recovery.batch=16", "recovery.micro_batch=16")
DIAGONALS = ("recovery.method=diagonals", "recovery.micro_batch=8")
RANGES = {"calibration": (0.0, 0.4), "validation": (0.4, 0.6), "evaluation": (0.6, 1.0), "recovery": (0.0, 0.4)}


def overrides(model: str, text: str) -> list[str]:
    """Overrides of `params.yaml` for a run of this backbone, besides the compression and the method."""
    given = [f"backbone.source={model}", "evaluation.tasks=[]"]
    if text != "demo":
        for section, (start, end) in RANGES.items():
            given += [f"data.{section}.source={text}", f"data.{section}.from={start}", f"data.{section}.to={end}"]
    return given


def run(given: list[str]) -> dict[str, Any]:
    """Run the flow once; returns the entries of its models."""
    parameters = load_parameters(Path("params.yaml"), given)
    compress(parameters)
    models: dict[str, Any] = json.loads((parameters.folder / "results" / "metrics.json").read_text())["models"]
    return models


def row(given: list[str], target: float, wanted: list[str]) -> str:
    """Row of one compression."""
    cells: dict[str, str] = {}
    for method, tune in (each.split(":") for each in wanted):
        way = DIAGONALS if tune == "diagonals" else (f"recovery.tune={tune}",)
        models = run([*RECOVERY, *way, *given, f"method={method}", f"ratios.compression={target}"])
        cells["dense"] = f"{models['dense']['perplexity']:.3f} ± {models['dense']['perplexity_stderr']:.3f}"
        if method == "mgaa":
            cells["uniform"] = f"{models['uniform']['perplexity']:.3f}"
        cells[method] = f"{models['unrecovered']['perplexity']:.3f}"
        cells[f"{method} {tune}"] = f"{models[method]['perplexity']:.3f}"
        cells[f"{method} {tune} removed"] = f"{models[method]['compression']:.3f}"
    after = " / ".join(cells.get(f"{method} product removed", "") for method in ("mgaa", "lorap"))
    return f"| {target} | {' | '.join(cells.get(name, '') for name in columns(wanted))} | {after} |"


def columns(wanted: list[str]) -> dict[str, str]:
    """Heads of the columns by name, including those of the diagonals if requested."""
    heads = {"dense": "dense ± s.e.", "uniform": "uniform"}
    for method, head in (("mgaa", "MGAA"), ("lorap", "LoRAP")):
        heads |= {method: head, f"{method} product": "+ product", f"{method} factors": "+ factors"}
        heads |= {f"{method} diagonals": "+ diagonals"} if f"{method}:diagonals" in wanted else {}
    return heads


def main() -> None:
    """Read the command line, run, print."""
    arguments, wanted = sys.argv[1:], WANTED
    if arguments[:1] == ["--only"]:
        wanted, arguments = arguments[1].split(","), arguments[2:]
    extra = [given for given in arguments if "." in given.split("=", 1)[0]]
    heads = ["compression", *columns(wanted).values(), "removed after product: MGAA / LoRAP"]
    for given in (each for each in arguments if each not in extra):
        name, place = given.split("=", 1)
        changed = [*overrides(*place.rsplit(":", 1)), *extra]
        print(f"\n### {name}\n\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}", flush=True)
        for target in TARGETS:
            print(row(changed, target, wanted), flush=True)


if __name__ == "__main__":
    main()
