"""Allocation files made on the spot, for the contract tests of methods that read one."""

import inspect
import json
import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

from mgaa.methods import FUNCTIONS
from mgaa.ranks import Rank

_numbers = count()


def reads_file(section: str, name: str) -> bool:
    """Tell whether a method needs the path of a file."""
    function = getattr(import_module(f"mgaa.{section}.{name}"), FUNCTIONS[section])
    return "path" in inspect.signature(function).parameters


def written(
    budget: int = 0,
    ratios: Mapping[str, float] | None = None,
    ranks: Iterable[Rank] = (),
    **others: Any,
) -> str:
    """Write an allocation with these ratios and ranks, in a folder that is deleted with the tests; returns its path."""
    entry = {
        "budget": budget,
        "sublayers": {name: {"ratio": ratio} for name, ratio in (ratios or {}).items()},
        "matrices": {x.matrix.name: {"m": x.matrix.m, "n": x.matrix.n, "rank": x.rank} for x in ranks},
    }
    path = Path(os.environ["PREFECT_HOME"]) / f"allocation-{next(_numbers)}.json"
    path.write_text(json.dumps(entry | others))
    return str(path)
