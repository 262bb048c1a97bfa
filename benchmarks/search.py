"""Tables of searches in docs/results.md: MGAA, the Gaussian process and random search at equal evaluations, by the flow that users run.

    python benchmarks/search.py NAME=MODEL:TEXT@COMPRESSION[xSEEDS] [...] [section.key=value ...]

Of every text the first 40 % of the documents calibrate, the next 20 % are searched on, the last 40 % are evaluated; `TEXT` is a file, or
`demo`. For each entry it runs `flows.search` (in this process) with one share per type and with four groups of blocks (5x1, 5x4), drawn
first trials and MGAA first, for SEEDS seeds (3 by default), each with a random search. Prints a Markdown table: means over seeds with their
standard deviation. A run that was stopped resumes where it was. The figures of the last entry stay in results/search; every entry's are
copied to results/search-NAME-COMPRESSION.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import overrides
from flows.search import search
from tasks.config.parameters import load_parameters
from tasks.figures.style import label_of
from tasks.search.figure import label_search
from tasks.search.publish import FOLDER
from tasks.search.study import NAME, TASK

GROUPS = "study.groups=[1,4]"
STARTS = "study.start=[random,mgaa]"


def rows(table: Any) -> list[str]:
    """One row for dense, MGAA and each kind of search."""
    tasks = [column for column in table if column.startswith(TASK)]
    found = []
    for row in table[table.method.isna()].to_dict("records"):
        scores = " | ".join(f"{row[task]:.3f}" for task in tasks)
        found.append(
            f"| {label_of(row['search'])} |  | 0 |  | {row['perplexity']:.3f} | {1000 * row['above_dense']:.1f} |  | {scores} |  |  |"
        )
    searches = table[table.method.notna()]
    for (groups, method, start), kind in searches.groupby(["groups", "method", "start"], sort=False):
        wins = (kind.verdict == "better").sum(), (kind.verdict == "worse").sum()
        scores = " | ".join(f"{kind[task].dropna().mean():.3f}" for task in tasks)
        overhead = kind.proposal_seconds.sum() / kind.evaluation_seconds.sum()
        found.append(
            f"| {label_search(method, start)} | 5x{groups:.0f} | {kind.evaluations.mean():.0f} | {spread(kind.objective, 3)} | "
            f"{spread(kind.perplexity, 3)} | {spread(1000 * kind.above_dense, 1)} | {wins[0]} / {wins[1]} of {len(kind)} | {scores} | "
            f"{kind.evaluation_seconds.mean():.0f} | {overhead:.1%} |"
        )
    return found


def spread(values: Any, digits: int) -> str:
    """Mean and standard deviation over seeds."""
    return (
        f"{values.mean():.{digits}f} ± {values.std():.{digits}f}" if len(values) > 1 else f"{values.mean():.{digits}f}"
    )


def main() -> None:
    """Read the command line, run, print."""
    from pandas import read_csv

    extra = [given for given in sys.argv[1:] if "." in given.split("=", 1)[0]]
    for given in (each for each in sys.argv[1:] if each not in extra):
        name, place = given.split("=", 1)
        source, _, target = place.rpartition("@")
        compression, _, seeds = target.partition("x")
        changed = [each for each in overrides(*source.rsplit(":", 1)) if not each.startswith("evaluation.")]
        changed += ["method=bolaco", f"ratios.compression={compression}", GROUPS, STARTS]
        changed += [f"study.seeds=[{','.join(map(str, range(int(seeds or 3))))}]", *extra]
        parameters = load_parameters(Path("params.yaml"), changed)
        search(parameters)
        table = read_csv(parameters.folder / FOLDER / NAME)
        shutil.copytree(
            parameters.folder / FOLDER, parameters.folder / f"{FOLDER}-{name}-{compression}", dirs_exist_ok=True
        )
        tasks = [column.removeprefix(TASK) for column in table if column.startswith(TASK)]
        columns = [
            "",
            "variables",
            "evaluations",
            "objective",
            "perplexity",
            "above dense",
            "better / worse than MGAA",
            *tasks,
        ]
        columns += ["evaluating, s", "proposing"]
        print(f"\n### {name} at {compression}\n\n```\npython -m flows.search {' '.join(changed)}\n```\n")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        print("\n".join(rows(table)), flush=True)


if __name__ == "__main__":
    main()
