"""SmolLM2-135M: every method at equal parameters, by the field's protocol, with paired intervals.

    python benchmarks/smollm2.py MODEL --wikitext2 wiki.test.raw --c4 c4.jsonl [--calibration train.txt] [--windows 12] [METHODS@COMPRESSIONS ...]
    python benchmarks/smollm2.py MODEL --wikitext2 wiki.test.raw --c4 c4.jsonl --tasks FOLDER [--limit 100]
    python benchmarks/smollm2.py --tables
    python benchmarks/smollm2.py --cells > docs/smollm2.csv

Of C4 the first 40 % of the documents calibrate (128 windows of 256 tokens, drawn by seed), the next 20 % are what a search validates on (16
windows), and the last 40 % are evaluated; with `--calibration` another text calibrates, whole. Both texts are evaluated by the field's
protocol (`tasks/data/protocols.py`): rows joined by two newlines, tokenized once, no mark added, whole windows of 2048 tokens back to back,
of which `--windows` takes the first so many of each text. Weights are in float32, as are factors. Every cell is kept in the output as soon
as it is measured, with the loss of every window, and not measured again: a run that was stopped resumes there, and a row is measured anew
once its cells are deleted. Seconds and memory are of the compression alone, and include what rows of one factorizer share. `METHODS` and
`COMPRESSIONS` are lists such as `uniform-afm,mgaa@0.2,0.4`; by default `PLAN`, in its order. `--keep FOLDER` keeps the models that answer
the tasks.
"""

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from benchmarks import proof_methods
from benchmarks.cells import content_of, kept, parameters
from benchmarks.effort import allocated, measured
from benchmarks.peers import lems
from benchmarks.proof import texts, whole
from benchmarks.smollm2_tables import cells_as_csv, tables
from mgaa.arguments import methods_of, target_of
from mgaa.checkpoints.save import twin_of
from mgaa.decomposed import DecomposedModel, decompose_model
from mgaa.errors import NumericalError, UsageError
from mgaa.evaluation.perplexity import perplexity
from mgaa.inputs.tokens import join, pack, windows
from mgaa.models.architectures import matrices_of
from mgaa.recovery import Plan, from_windows, recover_
from mgaa.statistics.calibration import CalibrationSettings
from tasks.data.protocols import PROTOCOLS, rows_of_lines
from tasks.evaluation import zero_shot

LENGTH = 2048
SEPARATOR = PROTOCOLS["wikitext2"].separator
PLAN = (
    "uniform-whitened,uniform-afm,asvd,lorap@0.2",
    "loss,level1,level2,mgaa@0.2",
    "uniform-afm,mgaa,level2,uniform-whitened@0.4",
    "zs-svd@0.2",
    "loss@0.4",
    "lorap,zs-svd,level1,asvd@0.4",
    "mgaa,uniform-afm,uniform-whitened@0.1,0.3,0.5",
    "loss@0.1,0.3,0.5",
    "bolaco,lems@0.2",
    "loss-refined@0.4,0.2",
    "mgaa-recovered@0.2",
)
"""The most telling cells first."""
WITH_TASKS = ("uniform-afm", "mgaa", "loss")
TASKS_AT = "0.2"
DEFAULTS = {name: each.default for name, each in inspect.signature(mgaa.compress_).parameters.items()}
RECOVERY = Plan(tune="factors", steps=40, batch=8, micro_batch=8, evaluate_every=10)


@dataclass(frozen=True)
class Bench:
    """The dense model with its texts: measures any model that is made from it.

    Attributes:
        model, tokenizer: dense.
        tokens: sequences that calibrate.
        validation: windows that a search or a recovery validates on.
        streams: windows to evaluate, by the name of the text.
    """

    model: PreTrainedModel
    tokenizer: Any
    tokens: Int[Tensor, "s t"]
    validation: Int[Tensor, "n t"]
    streams: Mapping[str, Int[Tensor, "w l"]]

    def measure(self, model: PreTrainedModel) -> dict[str, Any]:
        """Losses by window on both texts, and the fraction of the linear parameters that was removed."""
        linear = sum(matrix.parameters for matrix in matrices_of(self.model))
        found: dict[str, Any] = {"removed": (parameters(self.model) - parameters(model)) / linear}
        all_windows = torch.cat([*self.streams.values()])
        result = perplexity(model, all_windows.flatten(), length=all_windows.shape[1])
        losses, scored = list(result.losses), result.length - 1
        for name, stream in self.streams.items():
            own, losses = losses[: len(stream)], losses[len(stream) :]
            found[name] = {"nll": sum(own) / len(own) / scored, "losses": [round(x, 3) for x in own], "tokens": scored}
        return found


def bench_of(given: argparse.Namespace) -> Bench:
    """Read the model and the texts of a command line."""
    model, tokenizer = mgaa.load(given.model, device="cpu", dtype=given.dtype)
    calibration, validation, held_out = texts(str(given.c4))
    if given.calibration:
        calibration = whole(str(given.calibration))
    tokens, validated = (
        windows(pack(each, tokenizer).ids, 256, samples=samples)
        for each, samples in ((calibration, 128), (validation, 16))
    )
    rows = {"wikitext2": rows_of_lines("wikitext2", given.wikitext2.read_text(encoding="utf-8")), "c4": held_out}
    streams = {
        name: windows(join(each, tokenizer, separator=SEPARATOR).ids, LENGTH)[: given.windows]
        for name, each in rows.items()
    }
    return Bench(model, tokenizer, tokens, validated, streams)


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        family: rows of one family share what is measured once.
        share: measures that.
        compress: makes the model of one compression from it.
    """

    family: str
    share: Callable[[Bench], Any]
    compress: Callable[[Bench, Any, float], PreTrainedModel]


def by_levels(**settings: Any) -> Method:
    """Row by arguments of `mgaa.compress_` on dense inputs; rows of one factorizer share the decomposition."""
    given = {name: (DEFAULTS | settings)[name] for name in ("factors", "ratios", "ranks", "anchor", "refinement")}
    methods = methods_of(**given)
    target = partial(target_of, ranks=given["ranks"], channels="none")

    def share(bench: Bench) -> DecomposedModel:
        return decompose_model(
            bench.model,
            bench.tokens,
            matrices_of(bench.model),
            target(0.5, model=bench.model),
            CalibrationSettings(),
            methods.factors,
            residual=methods.residual,
        )

    def compress(bench: Bench, shared: DecomposedModel, compression: float) -> PreTrainedModel:
        twin = twin_of(bench.model)
        _, outcome = shared.allocate(target(compression, model=bench.model), methods.ratios, methods.ranks)
        if methods.anchoring is None:
            shared.put_(twin, outcome)
        else:
            fit = (CalibrationSettings(), methods.factors, methods.anchoring, methods.refinement)
            shared.anchor_(twin, outcome, bench.model, bench.tokens, *fit)
        return twin

    spectrum = given["ranks"].get("spectrum") if isinstance(given["ranks"], Mapping) else None
    return Method(f"{methods.factors} {methods.residual} {spectrum or 'metric'}", share, compress)


def by_itself(name: str, method: proof_methods.Method) -> Method:
    """Row that shares nothing with others, as in `benchmarks/proof.py`."""
    return Method(
        name,
        lambda bench: method(bench.model, bench.tokens, bench.validation),
        lambda _, prepared, compression: prepared(compression),
    )


def recovered(before: Method) -> Method:
    """Row with its factors tuned by LoRA on the calibration tokens, at equal parameters."""

    def compress(bench: Bench, shared: Any, compression: float) -> PreTrainedModel:
        model = before.compress(bench, shared, compression)
        with TemporaryDirectory() as folder:
            recover_(model, from_windows(bench.tokens), from_windows(bench.validation), RECOVERY, folder=folder)
        return model

    return Method(before.family, before.share, compress)


MGAA = by_levels()
METHODS = {
    "uniform-whitened": by_levels(factors="whitened", ratios="uniform", ranks="uniform"),
    "uniform-afm": by_levels(ratios="uniform", ranks="uniform"),
    "asvd": by_levels(factors="asvd", ratios="uniform", ranks="uniform"),
    "lorap": by_itself("lorap", proof_methods.METHODS["lorap"]),
    "zs-svd": by_itself("zs-svd", proof_methods.METHODS["zs-svd"]),
    "level1": by_levels(ranks="uniform"),
    "level2": by_levels(ratios="uniform"),
    "mgaa": MGAA,
    "loss": by_levels(**mgaa.LOSS),
    "loss-refined": by_levels(**mgaa.LOSS, refinement={"method": "adam", "steps": 60}),
    "bolaco": by_itself("bolaco", proof_methods.METHODS["bolaco"]),
    "lems": by_itself("lems", proof_methods.without_validation(partial(lems.prepare, sequences=4))),
    "mgaa-recovered": recovered(MGAA),
}


def planned(entries: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Compressions and methods in order.

    Raises:
        UsageError: a method is unknown, or an entry has no compressions.
    """
    for entry in entries:
        names, _, compressions = entry.partition("@")
        if not compressions or (unknown := [name for name in names.split(",") if name not in METHODS]):
            wrong = f"has no method {', '.join(unknown)}" if compressions else "has no compression"
            raise UsageError(
                f"{entry!r} {wrong}, expected METHODS@COMPRESSIONS such as mgaa@0.2,0.4, out of {', '.join(METHODS)}"
            )
        for compression in compressions.split(","):
            yield from ((compression, name) for name in names.split(","))


def fill(
    bench: Bench, cells: dict[str, Any], plan: Sequence[tuple[str, str]], save: Callable[[], None], keep: Path | None
) -> None:
    """Measure the missing cells."""
    shared: dict[str, tuple[Any, int, Any]] = {}
    for compression, name in plan:
        of_row, method = cells.setdefault(name, {}), METHODS[name]
        if compression in of_row:
            continue
        try:
            if method.family not in shared:
                before = allocated()
                effort, common = measured(partial(method.share, bench))
                shared[method.family] = effort, allocated() - before, common
            first, held, common = shared[method.family]
            own, model = measured(partial(method.compress, bench, common, float(compression)))
            cell = bench.measure(model)
            cell |= {
                "seconds": first.wall + own.wall,
                "cpu_seconds": first.cpu + own.cpu,
                "memory": max(first.memory, held + own.memory),
            }
            if keep and name in WITH_TASKS and compression == TASKS_AT:
                mgaa.save(model, bench.tokenizer, keep / name)
        except (NumericalError, UsageError) as error:
            cell = {"error": str(error)}
        of_row[compression] = cell
        save()
        found = cell.get("error") or ", ".join(f"{text} {cell[text]['nll']:.4f}" for text in bench.streams)
        print(f"{name} at {compression}: {found}, {cell.get('seconds', 0):.0f} s", file=sys.stderr, flush=True)


def answer(given: argparse.Namespace, content: dict[str, Any], save: Callable[[], None]) -> None:
    """Ask the dense and the kept models the missing tasks."""
    for name, source in {"dense": given.model, **{name: given.keep / name for name in WITH_TASKS}}.items():
        answers = content.setdefault("tasks", {}).setdefault(name, {})
        if not Path(source).exists() or not (missing := [each for each in zero_shot.OFFICIAL if each not in answers]):
            continue
        model, tokenizer = mgaa.load(source, device="cpu", dtype=given.dtype)
        for task in missing:
            answers |= zero_shot.run_tasks(model, tokenizer, [task], folder=given.tasks, limit=given.limit)
            save()
            print(f"{name}, {task}: {answers[task]}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", help="folder of the dense model")
    parser.add_argument("plan", nargs="*", metavar="METHODS@COMPRESSIONS", help="cells to measure, in order")
    parser.add_argument("--wikitext2", type=Path, help="WikiText-2 test, raw")
    parser.add_argument("--c4", type=Path, help="documents of C4: to calibrate, to validate, to evaluate")
    parser.add_argument("--calibration", type=Path, help="another text to calibrate on, whole")
    parser.add_argument("--windows", type=lambda n: None if n == "null" else int(n), default=12, help="null: all")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tasks", type=Path, help="folder of the items of the zero-shot tasks")
    parser.add_argument("--limit", type=int, default=100, help="items of each task")
    parser.add_argument("--keep", type=Path, default=Path("results/smollm2-models"))
    parser.add_argument("--output", type=Path, default=Path("results/smollm2.json"))
    parser.add_argument("--tables", action="store_true", help="print the tables of the output")
    parser.add_argument("--cells", action="store_true", help="print every cell of the output as CSV")
    return parser.parse_args()


def main() -> None:
    """Read the command line, run, print.

    Raises:
        UsageError: a cell is unknown, or the output is of other windows.
    """
    given = arguments()
    content = content_of(given.output)
    plan = [*planned(given.plan or PLAN)]
    save = partial(kept, given.output, content)
    if given.model and given.tasks:
        answer(given, content, save)
    elif given.model:
        stated = {"windows": given.windows, "dtype": given.dtype}
        if content.setdefault("settings", stated) != stated:
            raise UsageError(f"{given.output} has {content['settings']}, expected {stated}: give another --output")
        bench = bench_of(given)
        if "dense" not in content:
            content["dense"] = bench.measure(bench.model)
            save()
        name = given.calibration.stem if given.calibration else "c4"
        fill(
            bench,
            content.setdefault("cells", {}).setdefault(name, {}),
            plan,
            save,
            None if given.calibration else given.keep,
        )
    if given.tables:
        print(tables(content))
    if given.cells:
        print(cells_as_csv(content), end="")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    main()
