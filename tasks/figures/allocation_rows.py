"""What a figure shows of an allocation: its matrices by kind and block, the experts of a block as one, the method beside a baseline.

An allocation is that of tasks/artifacts/allocation_table.py.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Allocation = Mapping[str, Any]


def pair(allocations: Mapping[str, Allocation]) -> dict[str, Allocation]:
    """What the method is shown beside: uniform if it was run, else the first baseline, else nothing; the method first."""
    *baselines, method = allocations
    beside = ["uniform"] if "uniform" in baselines else baselines[:1]
    return {name: merged(allocations[name]) for name in (method, *beside)}


def kind_of(matrix: str) -> str:
    """The name of a matrix inside its block, the same for every expert."""
    return re.sub(r"\.experts\.\d+\.", ".experts.*.", matrix)


def merged(allocation: Allocation) -> Allocation:
    """The allocation with the experts of a block as one matrix: parameters summed, ranks, energies and squared errors averaged."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for matrix in allocation["matrices"].values():
        groups.setdefault((matrix["block"], kind_of(matrix["matrix"])), []).append(matrix)
    found = {f"{block}.{kind}": averaged(kind, those) for (block, kind), those in groups.items()}
    return {**allocation, "matrices": found}


def averaged(kind: str, matrices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for matrices of equal shape; its rank is that of the ones that are not dense."""
    count, ranks_ = len(matrices), [m["rank"] for m in matrices if m["rank"] is not None]
    return {
        **matrices[0],
        "matrix": kind,
        "m": count * matrices[0]["m"],
        "rank": round(sum(ranks_) / len(ranks_)) if ranks_ else None,
        "parameters": sum(m["parameters"] for m in matrices),
        "energy": sum(m["energy"] for m in matrices) / count,
        "error": math.sqrt(sum(m["error"] ** 2 for m in matrices) / count),
    }


def rows(allocation: Allocation) -> tuple[list[str], int]:
    """The kinds of matrices in model order, and the number of blocks."""
    matrices = allocation["matrices"].values()
    return list(dict.fromkeys(kind_of(matrix["matrix"]) for matrix in matrices)), 1 + max(m["block"] for m in matrices)
