"""Cost of the method of least loss against MGAA: CPU seconds of one thread, in pairs in one process.

    python benchmarks/least_loss.py [NAME=MODEL:TEXT:OTHER_TEXT ...] [--widths 512,1024] [--repeats 3] [--compressions 0.2,0.3,0.4]

Backbones and their 128 calibration windows of 256 tokens are those of `benchmarks/proof.py`; a width is a random Llama of four blocks with
32 windows. Each line has the median over the repeats, each of one compression by MGAA and one by `mgaa.LOSS`, in turns; the machine
should be otherwise idle.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from benchmarks.effort import Shape
from benchmarks.proof import Experiment
from mgaa.checkpoints.save import twin_of


def seconds(model: PreTrainedModel, tokens: Tensor, compression: float, **settings: Any) -> float:
    """CPU seconds of one compression of a copy."""
    twin, start = twin_of(model), time.process_time()
    mgaa.compress_(twin, tokens, compression=compression, **settings)
    return time.process_time() - start


def models(backbones: list[str], widths: list[int]) -> Iterator[tuple[str, PreTrainedModel, Tensor]]:
    """Models with their names and calibration tokens."""
    for place in backbones:
        name, _, paths = place.partition("=")
        bench = Experiment(*paths.split(":"))
        yield name, bench.model, bench.tokens
    for width in widths:
        shape = Shape(hidden=width, ffn=11 * width // 4, heads=width // 64, blocks=4, vocabulary=4096, length=256)
        yield f"{width} channels", shape.model(), shape.tokens()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backbones", nargs="*", metavar="NAME=MODEL:TEXT:OTHER_TEXT")
    parser.add_argument("--widths", default="")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compressions", default="0.2,0.3,0.4")
    return parser.parse_args()


def main() -> None:
    """Read the command line, run, print."""
    torch.set_num_threads(1)
    given = arguments()
    print("| backbone | compression | MGAA | least loss | ratio |\n|---|---|---|---|---|")
    ratios = []
    for name, model, tokens in models(given.backbones, [int(each) for each in given.widths.split(",") if each]):
        seconds(model, tokens, 0.5, **mgaa.LOSS)  # the first work of a process takes seconds longer
        for compression in map(float, given.compressions.split(",")):
            pairs = [
                (seconds(model, tokens, compression), seconds(model, tokens, compression, **mgaa.LOSS))
                for _ in range(given.repeats)
            ]
            mgaas, least = (statistics.median(each) for each in zip(*pairs, strict=True))
            ratios.append(least / mgaas)
            print(f"| {name} | {compression} | {mgaas:.2f} | {least:.2f} | {ratios[-1]:.2f} |", flush=True)
    print(f"| mean | | | | {statistics.mean(ratios):.2f} |")


if __name__ == "__main__":
    main()
