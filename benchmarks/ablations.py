"""Ablations of LoRAP, as in its paper, and the gain of calibrating on compressed blocks, in memory.

    python benchmarks/ablations.py NAME=MODEL:TEXT [NAME=MODEL:TEXT ...]

Of every text the first 40 % of the documents calibrate and the last 40 % are evaluated (256 windows of 256 tokens, drawn by seed); `TEXT`
is a file, or `demo`. For each backbone and compression: LoRAP as published, each of its parts replaced, and every factorizer with dense and
with compressed inputs under MGAA's allocation. Cells are thousandths of log-perplexity above dense; the mark compares with the first row of
the table, or with dense inputs, by a paired bootstrap over the windows: ▼ better, ▲ worse, ≈ undecided (95 %).
"""

import math
import sys
import time
from collections.abc import Iterator
from typing import Any

from torch import Tensor

import mgaa
from demo import corpus
from mgaa.compress import LORAP
from mgaa.evaluation.perplexity import Perplexity, perplexity
from mgaa.inputs.tokens import pack, windows
from mgaa.methods import available_methods
from tasks.data import documents
from tasks.evaluation.bootstrap import Bootstrap, verdict

TARGETS = (0.2, 0.5)
LENGTH = 256
PARTS: dict[str, dict[str, Any]] = {
    "LoRAP": {},
    "SVD instead of AWSVD": {"factors": "svd"},
    "AFM with its bias": {"factors": "afm"},
    "v, o : q, k = 1": {"ranks": {"method": "lorap", "split": 1.0, "multiple": 1}},
    "v, o : q, k = 5": {"ranks": {"method": "lorap", "split": 5.0, "multiple": 1}},
    "keep no least important": {"channels": {"method": "weighted", "keep_least": 0.0}},
    "keep 5 % of them": {"channels": {"method": "weighted", "keep_least": 0.05}},
    "FFN low rank": {"channels": "none"},
    "dense inputs": {"inputs": "dense"},
    "ratios of MGAA": {"ratios": {"method": "softmax", "temperature": 0.1, "band": 0.1}},
}
"""Settings of LoRAP that each row changes."""


def texts(name: str) -> tuple[list[str], list[str]]:
    """Calibration documents and evaluation documents of a text."""
    if name == "demo":
        held_out = corpus.held_out_documents()
        return tuple([each.text for each in held_out[split]] for split in ("calibration", "test"))  # type: ignore[return-value]
    whole = documents.read_documents(name).texts
    return documents.portion(whole, 0.0, 0.4), documents.portion(whole, 0.6, 1.0)


class Experiment:
    """One backbone: compresses copies of it and measures them."""

    def __init__(self, model: str, text: str) -> None:
        self.source = model
        _, tokenizer = mgaa.load(model, device="cpu")
        calibration, evaluation = texts(text)
        self.calibration = windows(pack(calibration, tokenizer).ids, LENGTH, samples=128)
        self.evaluation: Tensor = windows(pack(evaluation, tokenizer).ids, LENGTH, samples=256).flatten()
        self.dense = self.measure({}, None)

    def measure(self, settings: dict[str, Any], compression: float | None) -> Perplexity:
        """Perplexity at a compression, or of the dense model."""
        model, _ = mgaa.load(self.source, device="cpu")
        if compression is not None:
            mgaa.compress_(model, self.calibration, compression=compression, **settings)
        return perplexity(model, self.evaluation, length=LENGTH, batch_size=16)

    def cell(self, found: Perplexity, reference: Perplexity | None) -> str:
        """Increase over dense, and how it compares with the reference."""
        text = f"{1000 * (found.nll - self.dense.nll):.1f}"
        return text if reference is None else f"{text} {mark(found, reference)}"


def mark(found: Perplexity, reference: Perplexity) -> str:
    """Mark of a difference: better, worse or undecided beyond noise."""
    difference = Bootstrap(found.counts).difference(found.losses, reference.losses)
    return {"better": "▼", "worse": "▲", "undecided": "≈"}[verdict(difference)]


def parts(bench: Experiment) -> Iterator[str]:
    """Rows of the first table."""
    published = {target: bench.measure(LORAP, target) for target in TARGETS}
    for name, changed in PARTS.items():
        found = {
            target: bench.measure({**LORAP, **changed}, target) if changed else published[target] for target in TARGETS
        }
        cells = [bench.cell(found[target], published[target] if changed else None) for target in TARGETS]
        yield f"| {name} | {' | '.join(cells)} |"


def inputs(bench: Experiment) -> Iterator[str]:
    """Rows of the second table: every factorizer with dense and compressed inputs."""
    for factors in available_methods("factors"):
        cells = []
        for target in TARGETS:
            dense, behind = (
                bench.measure({"factors": factors, "inputs": each}, target) for each in ("dense", "compressed")
            )
            cells += [bench.cell(dense, None), bench.cell(behind, dense)]
        yield f"| {factors} | {' | '.join(cells)} |"


def main() -> None:
    """Read the command line, run, print."""
    targets = [f"{target}" for target in TARGETS]
    for given in sys.argv[1:]:
        name, place = given.split("=", 1)
        began = time.perf_counter()
        bench = Experiment(*place.rsplit(":", 1))
        print(
            f"\n### {name}: dense {math.exp(bench.dense.nll):.3f}\n\n| | {' | '.join(targets)} |\n|---|---|---|",
            flush=True,
        )
        for row in parts(bench):
            print(row, flush=True)
        columns = " | ".join(f"{target} dense | {target} compressed" for target in targets)
        print(f"\n| MGAA with | {columns} |\n|---|---|---|---|---|", flush=True)
        for row in inputs(bench):
            print(row, flush=True)
        print(f"\n{time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
