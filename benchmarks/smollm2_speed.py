"""Seconds of `mgaa.compress_` on SmolLM2-135M, by MGAA and by the method of the least loss, without evaluation.

    python -m benchmarks.smollm2_speed MODEL TEXT [--methods mgaa loss] [--dtype bfloat16] [--threads N] [--compression 0.2]

Calibration is that of `benchmarks/defaults.py`: 128 windows of 256 tokens from the first 40 % of the documents. Each method compresses the
model of its own; wall seconds, and CPU seconds of all threads, which other work on the machine changes less. The machine should be idle.
"""

import argparse
import time

import torch

import mgaa
from mgaa.inputs import tokens
from tasks.data import documents

METHODS = {"mgaa": {}, "loss": mgaa.LOSS}
"""Arguments of `mgaa.compress_` by the name of the method."""


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compression", type=float, default=0.2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model, tokenizer = mgaa.load(given.model, dtype=given.dtype)
    texts = documents.portion(documents.read_documents(given.text).texts, 0.0, 0.4)
    measured = tokens.windows(tokens.pack(texts, tokenizer).ids, 256, samples=128)
    print(f"{model.dtype}, {given.threads} threads\n\n| method | wall s | CPU s |\n|---|---|---|")
    for name in given.methods:
        model, _ = mgaa.load(given.model, dtype=given.dtype)
        wall, cpu = time.perf_counter(), time.process_time()
        mgaa.compress_(model, measured, compression=given.compression, **METHODS[name])
        print(f"| {name} | {time.perf_counter() - wall:.1f} | {time.process_time() - cpu:.1f} |", flush=True)


if __name__ == "__main__":
    main()
