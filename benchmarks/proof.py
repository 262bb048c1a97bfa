"""The proof: every method at the same budget on every backbone, in and out of the calibration domain, with paired intervals.

    python benchmarks/proof.py NAME=MODEL:TEXT:OTHER_TEXT [...] [--only METHOD,...] [--compressions 0.1,...] [--output proof.json]
    python benchmarks/proof.py --tables [--output proof.json]
    python benchmarks/proof.py --cells [--output proof.json] > docs/proof.csv

Of `TEXT` the first 40 % of the documents calibrate (128 windows of 256 tokens), the next 20 % are what searches validate on (200 windows),
and the last 40 % are evaluated (256 windows drawn by seed), also by the two zero-shot tasks that are made of them, through the harness, at
0.2 and 0.4. `OTHER_TEXT` is evaluated whole (256 windows). A text is a file, or `demo`. Models are in float32; every cell is kept in the
output as soon as it is measured, with the loss of every window, and is not measured again: a run that was stopped resumes there. Seconds are
wall and CPU time of one process, which include what a method shares between compressions. `benchmarks/proof_tables.py` makes the tables.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from benchmarks.cells import content_of, kept, parameters, timed
from benchmarks.proof_methods import METHODS
from benchmarks.proof_tables import cells_as_csv, tables
from demo import corpus
from demo import tasks as items
from mgaa.checkpoints.save import twin_of
from mgaa.errors import NumericalError, UsageError
from mgaa.evaluation.perplexity import perplexity
from mgaa.inputs.tokens import pack, windows
from mgaa.models.architectures import matrices_of
from tasks.data import documents
from tasks.evaluation import zero_shot

COMPRESSIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
WITH_TASKS = (0.2, 0.4)
LENGTH = 256
TASKS = ("last_word", "continuation")


class Experiment:
    """One backbone with its texts: measures any model that is made from it."""

    def __init__(self, source: str, text: str, other: str) -> None:
        self.model, self.tokenizer = mgaa.load(source, device="cpu", dtype="float32")
        calibration, validation, self.evaluation = texts(text)
        self.tokens = self._windows(calibration, 128)
        self.validation = self._windows(validation, 200)
        self.streams = {
            "inside": self._windows(self.evaluation, 256),
            "outside": self._windows(whole(other), 256),
        }

    def warm_up(self) -> None:
        """Compress once and discard the result: the first work of a process takes seconds longer (imports, pools), which no method should
        pay for.
        """
        mgaa.compress_(twin_of(self.model), self.tokens[:32], compression=0.5, **mgaa.LOSS)

    def _windows(self, texts: Sequence[str], samples: int) -> Tensor:
        return windows(pack(texts, self.tokenizer).ids, LENGTH, samples=samples)

    @cached_property
    def linear_parameters(self) -> int:
        """Number of parameters that compressions are fractions of."""
        return sum(matrix.parameters for matrix in matrices_of(self.model))

    def measure(self, model: PreTrainedModel, *, with_tasks: bool) -> dict[str, Any]:
        """Losses by window on both texts, the accuracy of the tasks, and the fraction of the linear parameters that was removed."""
        found: dict[str, Any] = {"removed": (parameters(self.model) - parameters(model)) / self.linear_parameters}
        for name, stream in self.streams.items():
            result = perplexity(model, stream.flatten(), length=LENGTH, batch_size=16)
            losses = [round(loss, 4) for loss in result.losses]
            found[name] = {"nll": result.nll, "losses": losses, "tokens": result.counts[0]}
        if with_tasks:
            found["tasks"] = self._answers(model)
        return found

    def _answers(self, model: PreTrainedModel) -> dict[str, list[float]]:
        """Accuracy and standard error by task."""
        with tempfile.TemporaryDirectory() as folder:
            items.write(self.evaluation, Path(folder))
            answered = zero_shot.run_tasks(model, self.tokenizer, TASKS, folder=Path(folder))
        return {task: [each["acc"], each["stderr"]] for task, each in answered.items()}


def texts(name: str) -> tuple[list[str], list[str], list[str]]:
    """Documents for calibration, for searches, and for evaluation."""
    if name == "demo":
        held_out = corpus.held_out_documents()
        calibration, validation, test = (
            [each.text for each in held_out[split]] for split in ("calibration", "validation", "test")
        )
        return calibration, validation, test
    found = documents.read_documents(name).texts
    calibration, validation, test = (documents.portion(found, *part) for part in ((0.0, 0.4), (0.4, 0.6), (0.6, 1.0)))
    return calibration, validation, test


def whole(name: str) -> list[str]:
    """A text that nothing was calibrated on."""
    return texts(name)[2] if name == "demo" else documents.read_documents(name).texts


def fill(
    bench: Experiment, record: dict[str, Any], name: str, compressions: Sequence[float], save: Callable[[], None]
) -> None:
    """Measure the missing cells of a method."""
    cells = record.setdefault("cells", {}).setdefault(name, {})
    missing = [each for each in compressions if str(each) not in cells]
    if not missing:
        return
    shared, prepared = timed(lambda: METHODS[name](bench.model, bench.tokens, bench.validation))
    for compression in missing:
        try:
            own, model = timed(partial(prepared, compression))
            cell = bench.measure(model, with_tasks=compression in WITH_TASKS)
            cell |= {key: shared[key] + own[key] for key in own}
        except (NumericalError, UsageError) as error:
            cell = {"error": str(error)}
        cells[str(compression)] = cell
        save()
        found = cell.get("error") or f"{cell['inside']['nll'] - record['dense']['inside']['nll']:.4f} nats above dense"
        print(f"{name} at {compression}: {found}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("backbones", nargs="*", metavar="NAME=MODEL:TEXT:OTHER_TEXT")
    parser.add_argument("--only", default=",".join(METHODS), help="methods, in order")
    parser.add_argument("--compressions", default=",".join(map(str, COMPRESSIONS)))
    parser.add_argument("--output", type=Path, default=Path("results/proof.json"))
    parser.add_argument("--tables", action="store_true", help="print overview and summary of the output")
    parser.add_argument("--cells", action="store_true", help="print every cell of the output as CSV")
    return parser.parse_args()


def main() -> None:
    """Read the command line, run, print."""
    given = arguments()
    content = content_of(given.output)
    if unknown := [name for name in given.only.split(",") if name not in METHODS]:
        raise UsageError(f"no method {', '.join(unknown)}, expected some of {', '.join(METHODS)}")
    for place in given.backbones:
        name, _, paths = place.partition("=")
        bench = Experiment(*paths.split(":"))
        record = content.setdefault(name, {})
        bench.warm_up()
        if "dense" not in record:
            record["dense"] = bench.measure(bench.model, with_tasks=True)
        for method in given.only.split(","):
            fill(
                bench,
                record,
                method,
                [float(each) for each in given.compressions.split(",")],
                lambda: kept(given.output, content),
            )
    if given.tables:
        print(tables(content))
    if given.cells:
        print(cells_as_csv(content), end="")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    main()
