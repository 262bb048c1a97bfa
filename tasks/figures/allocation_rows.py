"""An allocation as figures show it: its matrices by kind and block, the experts of a block as one, the method next to a baseline.

An allocation is that of tasks/artifacts/allocation_table.py.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

Allocation = Mapping[str, Any]


def choose_pair(allocations: Mapping[str, Allocation]) -> dict[str, Allocation]:
    """The method and what it is compared with: uniform if it was run, else the first baseline, else nothing; the method first."""
    *baselines, method = allocations
    beside = ["uniform"] if "uniform" in baselines else baselines[:1]
    return {name: merge_experts(allocations[name]) for name in (method, *beside)}


def kind_of(matrix: str) -> str:
    """Name of a matrix inside its block, the same for every expert."""
    return re.sub(r"\.experts\.\d+\.", ".experts.*.", matrix)


def merge_experts(allocation: Allocation) -> Allocation:
    """Merge the experts of a block into one matrix: parameters summed, ranks, energies and squared errors averaged."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for matrix in allocation["matrices"].values():
        groups.setdefault((matrix["block"], kind_of(matrix["matrix"])), []).append(matrix)
    found = {f"{block}.{kind}": average_rows(kind, those) for (block, kind), those in groups.items()}
    return {**allocation, "matrices": found}


def average_rows(kind: str, matrices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for matrices of equal shape; its rank is the mean over those that are not dense."""
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
    """Kinds of matrices in model order, and the number of blocks."""
    matrices = allocation["matrices"].values()
    return list(dict.fromkeys(kind_of(matrix["matrix"]) for matrix in matrices)), 1 + max(m["block"] for m in matrices)
