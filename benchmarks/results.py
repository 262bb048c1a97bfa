"""Table of docs/results.md: every backbone at every compression, by the flow that users run.

    python benchmarks/results.py NAME=MODEL:TEXT [NAME=MODEL:TEXT ...] [section.key=value ...]

For each backbone and compression it runs `python -m flows.compress` (in this process) with the baselines uniform, level1 and level2, on the
last 40 % of the documents of `TEXT` (a file, or `demo`: the test split), after calibration on the first 40 %. Prints one Markdown table per
backbone: perplexity of every model, and the increase of log-perplexity over dense as a share of uniform's. The command of each row is
above its table.
"""

import json
import math
import sys
from pathlib import Path

from flows.compress import compress
from tasks.config.parameters import load_parameters

TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5)
MODELS = ("uniform", "level1", "level2", "mgaa")


def overrides(model: str, text: str) -> list[str]:
    """Overrides of `params.yaml` for a run of this backbone, besides the compression."""
    given = [f"backbone.source={model}", "evaluation.baselines=[uniform,level1,level2]", "evaluation.tasks=[]"]
    if text != "demo":
        for section, (start, end) in {
            "calibration": (0.0, 0.4),
            "validation": (0.4, 0.6),
            "evaluation": (0.6, 1.0),
        }.items():
            given += [f"data.{section}.source={text}", f"data.{section}.from={start}", f"data.{section}.to={end}"]
    return given


def rows(given: list[str]) -> list[str]:
    """One row per compression."""
    found = []
    for target in TARGETS:
        parameters = load_parameters(Path("params.yaml"), [*given, f"ratios.compression={target}"])
        compress(parameters)
        models = json.loads((parameters.folder / "results" / "metrics.json").read_text())["models"]
        dense = models["dense"]["nll"]
        increase = {name: models[name]["nll"] - dense for name in MODELS}
        removed = " / ".join(f"{models[name]['compression']:.4f}" for name in ("uniform", "mgaa"))
        cells = [f"{models[name]['perplexity']:.3f}" for name in MODELS]
        shares = [f"{increase[name] / increase['uniform']:.0%}" for name in MODELS[1:]]
        error = models["dense"]["perplexity_stderr"]
        found.append(
            f"| {target} | {math.exp(dense):.3f} ± {error:.3f} | {' | '.join(cells)} | {' | '.join(shares)} | {removed} |"
        )
    return found


def main() -> None:
    """Read the command line, run, print."""
    head = "| compression | dense ± s.e. | uniform | level 1 only | level 2 only | MGAA | level 1 / uniform | level 2 / uniform | MGAA / uniform "
    extra = [given for given in sys.argv[1:] if "." in given.split("=", 1)[0]]
    for given in (each for each in sys.argv[1:] if each not in extra):
        name, place = given.split("=", 1)
        changed = [*overrides(*place.rsplit(":", 1)), *extra]
        print(
            f"\n### {name}\n\n```\npython -m flows.compress {' '.join(changed)} ratios.compression=0.2   # or another value of the first column\n```\n"
        )
        print(f"{head}| removed: uniform / MGAA |\n|{'---|' * 10}", flush=True)
        for row in rows(changed):
            print(row, flush=True)


if __name__ == "__main__":
    main()
