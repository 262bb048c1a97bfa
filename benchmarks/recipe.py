"""Cost of a compression against the published SVD-LLM recipe (`benchmarks/svdllm.py`), with a check that its layer errors are no larger.

    python benchmarks/recipe.py [--blocks 8] [--hidden 1024] [--ffn 2816] [--samples 32] [--length 512] [--threads N] [--targets 1 5]

A random Llama in float32 and random tokens (the work does not depend on the values). Each row is a fresh process, which builds the model,
then measures the compression alone (`benchmarks/effort.py`): for one target (0.2), then for five (0.1 to 0.5), the recipe repeated whole,
and with its calibration reused. Ours is `mgaa.compress_` and `mgaa.sweep`, once with the recipe's own choices (`whitened`, uniform ratios
and ranks, one sequence at a time), once with the defaults. Then the relative output errors of all matrices on the calibration tokens, at
the ranks of the recipe, inputs of the dense model.
"""

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import mgaa
from benchmarks.effort import Effort, Shape, effort, fresh
from benchmarks.svdllm import profiled, rank, whiten_
from mgaa.checkpoints.save import apply_factors, twin_of
from mgaa.decomposed import decompose_model
from mgaa.factors import factorize_linear
from mgaa.levels import Target
from mgaa.models.architectures import matrices_of
from mgaa.statistics.calibration import CalibrationSettings

TARGETS = (0.1, 0.2, 0.3, 0.4, 0.5)
ONE = (0.2,)
SAME: dict[str, Any] = {
    "factors": "whitened",
    "ratios": "uniform",
    "ranks": {"method": "uniform", "multiple": 1},
    "batch_size": 1,
}
"""Choices of the recipe as arguments of `mgaa.compress_`, including one sequence at a time."""


def recipe(model: Any, tokens: Tensor, targets: Sequence[float]) -> None:
    """Run the recipe in full for each target; with several, the model is kept for the next."""
    for target in targets:
        twin = model if len(targets) == 1 else twin_of(model)
        whiten_(twin, profiled(twin, tokens), target)


def recipe_reused(model: Any, tokens: Tensor, targets: Sequence[float]) -> None:
    """Run the recipe with one calibration for all targets."""
    profile = profiled(model, tokens)
    for target in targets:
        whiten_(twin_of(model), profile, target)


def ours(model: Any, tokens: Tensor, targets: Sequence[float], **options: Any) -> None:
    """Run ours, in one call."""
    if len(targets) == 1:
        mgaa.compress_(model, tokens, compression=targets[0], **options)
    else:
        for _ in mgaa.sweep(model, tokens, targets, **options):
            pass


ROWS = {
    "recipe": (recipe, ONE, {}),
    "mgaa, the recipe's choices": (ours, ONE, SAME),
    "mgaa, defaults": (ours, ONE, {}),
    "recipe, whole each time": (recipe, TARGETS, {}),
    "recipe, calibration reused": (recipe_reused, TARGETS, {}),
    "mgaa.sweep, the recipe's choices": (ours, TARGETS, SAME),
    "mgaa.sweep, defaults": (ours, TARGETS, {}),
}


def cost(name: str, shape: Shape, threads: int) -> Effort:
    """Cost of one row, in this process."""
    torch.set_num_threads(threads)
    work, targets, options = ROWS[name]
    model, tokens = shape.model(), shape.tokens()
    return effort(partial(work, model, tokens, targets, **options))


@torch.no_grad()
def errors(shape: Shape, threads: int) -> dict[str, tuple[float, float]]:
    """Relative output error of every matrix, by the recipe and by ours at its ranks, at a compression of 0.2."""
    torch.set_num_threads(threads)
    model, tokens = shape.model(), shape.tokens()
    theirs, same = twin_of(model), twin_of(model)
    whiten_(theirs, profiled(model, tokens), ONE[0])
    matrices = matrices_of(model)
    spectra = decompose_model(model, tokens, matrices, Target(ONE[0]), CalibrationSettings(), ("whitened", {})).spectra
    ranks = {matrix.name: rank(model.get_submodule(matrix.name), ONE[0]) for matrix in matrices}
    apply_factors(same, {name: factorize_linear(model, name, spectra[name], kept) for name, kept in ranks.items()})
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in ranks}

    def watch(name: str, x: Tensor, y: Tensor) -> None:
        missing = [twin.get_submodule(name)(x) - y for twin in (theirs, same)]
        sums[name] += torch.stack([part.double().square().sum() for part in (y, *missing)])

    for name in sums:
        linear: Any = model.get_submodule(name)
        linear.register_forward_hook(lambda _, x, y, name=name: watch(name, x[0], y))
    for sequence in tokens:
        model.model(sequence.unsqueeze(0), use_cache=False)
    return {name: ((r / whole).sqrt().item(), (o / whole).sqrt().item()) for name, (whole, r, o) in sums.items()}


def main() -> None:
    """Read the command line, run, print."""
    parser, default = argparse.ArgumentParser(), Shape()
    for name in ("hidden", "ffn", "heads", "blocks", "vocabulary", "samples", "length"):
        parser.add_argument(f"--{name}", type=int, default=getattr(default, name))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--targets", type=int, nargs="+", default=[1, 5], choices=[1, 5])
    given = vars(parser.parse_args())
    threads, wanted = given.pop("threads"), given.pop("targets")
    shape = Shape(**given)
    print(f"{shape}, {sum(p.numel() for p in shape.model().parameters()):,} parameters, float32, {threads} threads\n")
    print(
        "| targets | | wall s | CPU s | peak MB | recipe / it: wall | CPU | it / recipe: peak |\n|---|---|---|---|---|---|---|---|"
    )
    first: dict[int, Effort] = {}
    for name, (_, targets, _) in ROWS.items():
        if len(targets) not in wanted:
            continue
        it: Effort = fresh(cost, name, shape, threads)
        base = first.setdefault(len(targets), it)
        print(
            f"| {len(targets)} | {name} | {it.wall:.1f} | {it.cpu:.1f} | {it.memory / 1e6:.0f} | {base.wall / it.wall:.2f} | {base.cpu / it.cpu:.2f} "
            f"| {it.memory / base.memory:.2f} |",
            flush=True,
        )
    pairs = fresh(errors, shape, threads)
    ratios = [same / theirs for theirs, same in pairs.values()]
    worst = max(pairs, key=lambda name: pairs[name][1] / pairs[name][0])
    print(
        f"\nLayer errors over {len(pairs)} matrices at a compression of {ONE[0]}: recipe {statistics.fmean(r for r, _ in pairs.values()):.6f}, "
        f"mgaa at its ranks {statistics.fmean(o for _, o in pairs.values()):.6f}; mgaa / recipe {min(ratios):.6f} to {max(ratios):.6f} ({worst})."
    )


if __name__ == "__main__":
    main()
