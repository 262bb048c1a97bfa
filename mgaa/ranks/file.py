"""Ranks from a file, independent of the ratios: reuse those found on a base model for its chat model (`mgaa.allocation`).

The budget of the file is that of the compression. The ranks are never refilled (`whole_model`): they are those of the file even where they
cost less than there (a factorizer that adds no biases) or where their rule left parameters over.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mgaa.allocation.file import SavedMatrix, load_allocation
from mgaa.budget import Ladder, parameter_budget
from mgaa.errors import UsageError
from mgaa.methods import Traits

TRAITS = Traits(whole_model=True)


def allocate(ladders: Sequence[Ladder], budget: int, *, path: str | Path, model: str | None = None) -> list[int]:
    """Rungs of the ranks in the file, whose budget must be `budget` (`check`).

    Args:
        path: the file.
        model: which model of a run's file; by default the last.

    Raises:
        InputError: the file is missing or damaged.
        UsageError: a matrix has another shape in it or is not there, or its rank is not on the ladder.
    """
    saved = load_allocation(path, model).matrices
    return [_rung(ladder, saved, path) for ladder in ladders]


def check(ladders: Sequence[Ladder], compression: float, *, path: str | Path, model: str | None = None) -> None:
    """Refuse a file that does not fit the whole model.

    Raises:
        InputError: the file is missing or damaged.
        UsageError: it is for another model or another compression, a rank is not on its ladder, or together they cost too much.
    """
    saved = load_allocation(path, model)
    if pruned := [name for name, each in saved.matrices.items() if each.width is not None]:
        raise UsageError(
            f"{path} has pruned FFNs ({pruned[0]} of width {saved.matrices[pruned[0]].width}), expected ranks for all matrices: repeat its "
            "run from its ratios (ratios.method=file), with the same ranks.method and channels"
        )
    rungs = [_rung(ladder, saved.matrices, path) for ladder in ladders]
    if other := [name for name in saved.matrices if name not in {ladder.matrix.name for ladder in ladders}]:
        raise UsageError(f"{path} is an allocation file for another model: {other[0]} is in the file alone")
    total = sum(ladder.matrix.parameters for ladder in ladders)
    budget = parameter_budget([ladder.matrix for ladder in ladders], compression)
    if saved.budget != budget:
        raise UsageError(
            f"the ranks in {path} are for a budget of {saved.budget:,} linear parameters (compression {1 - saved.budget / total:.4g}), "
            f"but compression {compression} allows {budget:,}: set ratios.compression to that of the file, or take another file"
        )
    if (cost := sum(ladder.costs[rung] for ladder, rung in zip(ladders, rungs, strict=True))) > budget:
        raise UsageError(
            f"the ranks in {path} cost {cost:,} linear parameters here, more than the {budget:,} that compression {compression} allows: "
            "take the factors.method that they were found with (a centred one adds biases), or where recovery has raised the ranks, "
            "those before it (ranks.model=unrecovered)"
        )


def _rung(ladder: Ladder, matrices: Mapping[str, SavedMatrix], path: str | Path) -> int:
    """The rung of a matrix's saved rank on its ladder."""
    matrix, saved = ladder.matrix, matrices.get(ladder.matrix.name)
    if saved is None or (saved.m, saved.n) != (matrix.m, matrix.n):
        found = "missing" if saved is None else f"{saved.m} x {saved.n}"
        raise UsageError(
            f"{path} is an allocation file for another model: {matrix.name} is {matrix.m} x {matrix.n} here and {found} in the file"
        )
    if saved.rank not in ladder.ranks:
        low = [rank for rank in ladder.ranks if rank is not None]
        legal = f"a multiple of {low[0]} from {low[0]} to {low[-1]}, or null (dense)" if low else "null (dense)"
        raise UsageError(
            f"rank {saved.rank} of {matrix.name} in {path} is not on its ladder: expected {legal}; a larger one costs as much as the "
            "dense matrix, other steps need another ranks.multiple, and under ranks.objective=latency some may be slower than dense"
        )
    return ladder.ranks.index(saved.rank)
