"""Space of a search: one kept share per type of matrix, or per type and group of consecutive blocks.

Bolaco (arXiv 2405.10616, 3.3) ties ranks by type, `{qk, o, gate, up, down}`, because a search over all matrices would need
thousands of evaluations. A variable is the kept share of parameters of its matrices, from `least` to 1, and 1 is dense; value matrices
are always dense. One group gives 5 variables ("5x1"), four give 20 ("5x4").

Our choice: every point of the unit cube is an allocation that spends the budget. With raw shares `s_i = least + (1 - least) u_i` and `P_i`
the parameters of a variable, the shares are `clamp(s_i + t, least, 1)`, where the single shift t makes `sum_i P_i share_i` equal to the
budget (the code of the paper draws until a point falls within a tenth below it). So many points have shares of exactly 1: the shift lets a
search find that a type should stay dense, which costs as much as the largest low rank and has no error. Then ranks are rounded down and the
remainder is refilled (`mgaa.budget`), so that the budget is met like that of any other method.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mgaa.budget import Ladder, Matrix, lower_rungs, parameter_budget, refill
from mgaa.errors import UsageError
from mgaa.ranks import Rank

TIED = {"q": "qk", "k": "qk"}
"""Roles that share a type in Bolaco; every other role is its own type."""


@dataclass(frozen=True)
class Variable:
    """Matrices that keep the same share.

    Attributes:
        type: of the matrices.
        blocks: the first block of the group, and one past its last.
        matrices: their names.
        parameters: of all of them.
    """

    type: str
    blocks: tuple[int, int]
    matrices: tuple[str, ...]
    parameters: int

    @property
    def name(self) -> str:
        """Type and blocks, such as `gate 0-3`."""
        first, end = self.blocks
        return f"{self.type} {first}" if end - first == 1 else f"{self.type} {first}-{end - 1}"


@dataclass(frozen=True)
class Space:
    """All allocations of one model at one compression; made by `space_of`.

    Attributes:
        variables: by type, the groups of a type in the order of blocks.
        dense: names of the matrices that stay dense.
        least: smallest kept share.
        budget: linear parameters that may remain, including those of the dense matrices.
        fixed: parameters of the dense matrices.
        compression: fraction of all linear parameters to remove.
    """

    variables: tuple[Variable, ...]
    dense: frozenset[str]
    least: float
    budget: int
    fixed: int
    compression: float

    def __len__(self) -> int:
        return len(self.variables)

    def shares(self, point: Sequence[float]) -> dict[Variable, float]:
        """Return the kept share of every variable at a point of the unit cube; before ranks are rounded they remove exactly `compression`.

        Raises:
            UsageError: the point is outside the cube, or has another dimension.
        """
        if len(point) != len(self) or not all(0 <= value <= 1 for value in point):
            raise UsageError(
                f"the point {[*point]} is not in this space: expected {len(self)} numbers from 0 to 1, one for each of "
                + ", ".join(variable.name for variable in self.variables)
            )
        raw = self.least + (1 - self.least) * torch.tensor(point, dtype=torch.float64)
        weights = torch.tensor([variable.parameters for variable in self.variables], dtype=torch.float64)
        kept = (1 - self.compression) * (float(weights.sum()) + self.fixed) - self.fixed
        shifted = _shifted(raw, weights, self.least, kept)
        return dict(zip(self.variables, shifted.tolist(), strict=True))

    def nearest(self, kept: Mapping[str, float]) -> list[float]:
        """Return the point whose shares are those of an allocation, averaged over each variable and shifted to the budget.

        Args:
            kept: the share of its parameters that each matrix keeps, by name.
        """
        point = []
        for variable in self.variables:
            share = sum(kept[name] for name in variable.matrices) / len(variable.matrices)
            point.append(min(1.0, max(0.0, (share - self.least) / (1 - self.least))))
        return point

    def allocate(self, ladders: Sequence[Ladder], point: Sequence[float]) -> tuple[dict[str, float], list[Rank]]:
        """Allocate ratios by sublayer, before ranks are rounded, and the rank of every matrix.

        Args:
            ladders: of all matrices of the model, in model order.

        Raises:
            UsageError: the point is outside this space.
        """
        share = {name: value for variable, value in self.shares(point).items() for name in variable.matrices}
        kept = {ladder.matrix.name: share.get(ladder.matrix.name, 1.0) for ladder in ladders}
        free = [ladder for ladder in ladders if ladder.matrix.name not in self.dense]
        budget = self.budget - self.fixed
        rungs = [ladder.rung_within(kept[ladder.matrix.name] * ladder.matrix.parameters + 1e-6) for ladder in free]
        rungs = refill(free, lower_rungs(free, rungs, budget), budget)
        standing = {ladder.matrix.name: rung for ladder, rung in zip(free, rungs, strict=True)}
        ranks = [Rank.at(ladder, standing.get(ladder.matrix.name, -1)) for ladder in ladders]
        return _ratios([ladder.matrix for ladder in ladders], kept), ranks

    def check(self, ladders: Sequence[Ladder]) -> None:
        """Refuse a budget that no allocation of this space can meet.

        Raises:
            UsageError: the budget is too small; the message names the largest compression that can be reached.
        """
        weights = sum(variable.parameters for variable in self.variables)
        lowest = sum(ladder.costs[0] for ladder in ladders if ladder.matrix.name not in self.dense)
        floor = self.fixed + max(lowest, int(self.least * weights))
        if floor > self.budget:
            total = weights + self.fixed
            kinds = ", ".join(sorted({ladder.matrix.role for ladder in ladders if ladder.matrix.name in self.dense}))
            raise UsageError(
                f"compression {self.compression} is out of reach of this search: {self.fixed:,} of {total:,} linear parameters stay dense "
                f"({kinds or 'none'}) and every other matrix keeps at least {self.least:g} of its own; the largest reachable compression "
                f"is {int(1e4 * (1 - floor / total)) / 1e4:.4f} (a smaller search.least or fewer types in search.dense reach further)"
            )


def space_of(
    matrices: Sequence[Matrix],
    *,
    compression: float,
    groups: int = 1,
    dense: Sequence[str] = ("v",),
    least: float = 0.2,
    tied: Mapping[str, str] = TIED,
) -> Space:
    """Build the search space of a model.

    Args:
        matrices: all of them, in model order.
        compression: fraction of all linear parameters to remove.
        groups: number of groups of consecutive blocks, as even as possible, the first ones larger: 5 blocks in 4 groups are 2, 1, 1, 1.
        dense: types that stay dense.
        least: smallest kept share of a matrix.
        tied: types of roles that are not their own type.

    Raises:
        UsageError: there are more groups than blocks, `least` is not a share, a type is not in the model, or all of them are dense.
    """
    blocks = 1 + max(matrix.block for matrix in matrices)
    if not 1 <= groups <= blocks:
        raise UsageError(f"search.groups is {groups}, expected 1 to {blocks}, the blocks of the model")
    if not 0 < least < 1:
        raise UsageError(
            f"search.least is {least}, expected a number between 0 and 1: the smallest kept share of a matrix"
        )
    type_of = {matrix: tied.get(matrix.role, matrix.role) for matrix in matrices}
    types = [*dict.fromkeys(type_of.values())]
    if unknown := [name for name in dense if name not in types]:
        raise UsageError(f"search.dense has {unknown[0]!r}, expected types of this model: {', '.join(types)}")
    free = [name for name in types if name not in dense]
    if not free:
        raise UsageError(
            f"search.dense has all types of the model ({', '.join(types)}): leave out what may be compressed"
        )
    variables = []
    for name in free:
        for first, end in _groups(blocks, groups):
            inside = [m for m in matrices if type_of[m] == name and first <= m.block < end]
            if inside:
                total = sum(matrix.parameters for matrix in inside)
                variables.append(Variable(name, (first, end), tuple(matrix.name for matrix in inside), total))
    kept = [matrix for matrix in matrices if type_of[matrix] in dense]
    return Space(
        variables=tuple(variables),
        dense=frozenset(matrix.name for matrix in kept),
        least=least,
        budget=parameter_budget(matrices, compression),
        fixed=sum(matrix.parameters for matrix in kept),
        compression=compression,
    )


def _groups(blocks: int, groups: int) -> list[tuple[int, int]]:
    size, larger = divmod(blocks, groups)
    ends = [size * (index + 1) + min(index + 1, larger) for index in range(groups)]
    return list(zip([0, *ends], ends, strict=False))


def _shifted(
    raw: Float[Tensor, " d"], weights: Float[Tensor, " d"], least: float, budget: float
) -> Float[Tensor, " d"]:
    """Return `clamp(raw + t, least, 1)` with the t at which `sum weights * shares` is the budget.

    The sum is linear between the values of t at which a share reaches a bound: these are searched, and the last piece is interpolated.
    """

    def spent(shift: Tensor) -> Tensor:
        return (weights * (raw + shift).clamp(least, 1.0)).sum()

    shifts = torch.cat([least - raw, 1.0 - raw]).sort().values
    totals = torch.stack([spent(shift) for shift in shifts])
    above = int((totals < budget).sum().clamp(max=len(shifts) - 1))
    below = max(above - 1, 0)
    rise = totals[above] - totals[below]
    part = ((budget - totals[below]) / rise).clamp(0.0, 1.0) if rise > 0 else torch.ones_like(rise)
    return (raw + shifts[below] + part * (shifts[above] - shifts[below])).clamp(least, 1.0)


def _ratios(matrices: Sequence[Matrix], kept: Mapping[str, float]) -> dict[str, float]:
    """Return the fraction of its parameters that every sublayer loses."""
    ratios = {}
    for name, group in groupby(matrices, key=lambda matrix: matrix.sublayer):
        inside: list[Any] = [*group]
        total = sum(matrix.parameters for matrix in inside)
        ratios[name] = 1 - sum(kept[matrix.name] * matrix.parameters for matrix in inside) / total
    return ratios
