"""Growth of the cost of a compression with the width, the depth, the calibration tokens and the number of targets.

    python benchmarks/costs.py [--threads N]

A random Llama in float32, `mgaa.sweep` with its defaults; every row changes one number of the first and is a fresh process
(`benchmarks/effort.py`).
Each cost is printed with its ratio to that of the first row.
"""

import argparse
from dataclasses import replace

import torch

import mgaa
from benchmarks.effort import Effort, Shape, effort, fresh

BASE = Shape(hidden=256, ffn=704, heads=4, blocks=4, vocabulary=4096, samples=32, length=256)
GRID = {
    "hidden": (512, 1024),
    "blocks": (8, 16),
    "samples": (64, 128),
    "targets": (2, 4, 8),
}


def cost(shape: Shape, targets: int, threads: int) -> Effort:
    """Cost of compressions evenly between 0.1 and 0.5, each dropped before the next, in this process."""
    torch.set_num_threads(threads)
    model, tokens = shape.model(), shape.tokens()
    compressions = [0.1 + 0.4 * index / targets for index in range(targets)]

    def run() -> None:
        for _ in mgaa.sweep(model, tokens, compressions):
            pass

    return effort(run)


def wider(hidden: int) -> Shape:
    """The base with another width; the FFN and the heads grow with it."""
    factor = hidden // BASE.hidden
    return replace(BASE, hidden=hidden, ffn=BASE.ffn * factor, heads=BASE.heads * factor)


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    threads = parser.parse_args().threads
    base: Effort = fresh(cost, BASE, 1, threads)
    print(f"{BASE}, float32, 1 target, {threads} threads\n")
    print("| changed | wall s | ratio | CPU s | ratio | peak MB | ratio |\n|---|---|---|---|---|---|---|")
    rows: list[tuple[str, Effort]] = [("", base)]
    for name, values in GRID.items():
        for value in values:
            shape = BASE if name == "targets" else wider(value) if name == "hidden" else replace(BASE, **{name: value})
            rows.append((f"{name} {value}", fresh(cost, shape, value if name == "targets" else 1, threads)))
    for label, it in rows:
        print(
            f"| {label} | {it.wall:.1f} | {it.wall / base.wall:.2f} | {it.cpu:.1f} | {it.cpu / base.cpu:.2f} "
            f"| {it.memory / 1e6:.0f} | {it.memory / base.memory:.2f} |"
        )


if __name__ == "__main__":
    main()
