"""An allocation as a file, so that one computed for a base model can be reused for its chat model.

JSON in the layout of one model's entry in `results/allocation.json` of a run; `Report.save` writes the same:

    {"compression": 0.2, "budget": 800, "linear_parameters": 798, "slack": 2,
     "sublayers": {"0.attention": {"ratio": 0.18, ...}, ...},
     "matrices": {"model.layers.0.self_attn.q_proj": {"m": 32, "n": 32, "rank": 9, ...}, ...}}

A file of a run holds several models by name, the run's method last. A matrix of a pruned FFN also has its `width`. Only the budget, the
ratios, the ranks (null is dense) and the widths are read; the rest is for people. Python writes the shortest decimal that reads back as the
same number, so nothing is lost.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgaa.checkpoints.output_folder import write_output
from mgaa.errors import InputError, ResourceError, UsageError

_REMEDY = "give what `Report.save` wrote, or `results/allocation.json` of a run"


@dataclass(frozen=True)
class SavedMatrix:
    """A matrix in an allocation: its shape, its rank (`None` is dense), and its width if its FFN is pruned."""

    m: int
    n: int
    rank: int | None
    width: int | None = None


@dataclass(frozen=True)
class Allocation:
    """Content of an allocation file.

    Attributes:
        budget: linear parameters allowed.
        ratios: by sublayer, `<block>.<sublayer>`.
        matrices: by name, in model order.
    """

    budget: int
    ratios: dict[str, float]
    matrices: dict[str, SavedMatrix]


def save_allocation(entry: Mapping[str, Any], path: str | Path) -> None:
    """Write the entry of one model.

    Raises:
        UsageError: the path holds a file that this package did not write, or that has changed since.
        ResourceError: the file cannot be written.
    """
    try:
        Path(path).parent.stat()
        write_output(path, (json.dumps(entry, indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise ResourceError(
            f"the allocation cannot be written to {path} ({error.strerror}): make room or give a path that can be written"
        ) from error


def load_allocation(path: str | Path, model: str | None = None) -> Allocation:
    """Read the allocation of one model.

    Args:
        path: what `save_allocation` wrote, or the file of a run.
        model: name of a model in a run's file; by default the last, which is the run's method.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
        UsageError: the file has no such model.
    """
    content = _content(path)
    if {"budget", "sublayers", "matrices"} & content.keys():
        if model is not None:
            raise UsageError(
                f"model is {model!r}, but {path} holds one allocation without a name: leave the option out"
            )
        return _allocation(content, str(path))
    name = list(content)[-1] if model is None else model
    if name not in content:
        raise UsageError(f"model is {model!r}, expected one of those in {path}: {', '.join(content)}")
    return _allocation(content[name], f"{name} in {path}")


def _content(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the allocation {path} cannot be read ({error.strerror}): {_REMEDY}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"the allocation {path} is not JSON ({error}): {_REMEDY}") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"the allocation {path} holds no model: {_REMEDY}")
    return content


def _allocation(entry: Any, where: str) -> Allocation:
    sublayers, matrices = (_get(entry, key, dict, where) for key in ("sublayers", "matrices"))
    return Allocation(
        budget=_get(entry, "budget", int, where),
        ratios={name: float(_get(item, "ratio", float, f"{name} of {where}")) for name, item in sublayers.items()},
        matrices={name: _parse_matrix(item, f"{name} of {where}") for name, item in matrices.items()},
    )


def _parse_matrix(entry: Any, where: str) -> SavedMatrix:
    m, n = _get(entry, "m", int, where), _get(entry, "n", int, where)
    rank = None if isinstance(entry, dict) and entry.get("rank", 0) is None else _get(entry, "rank", int, where)
    width = _get(entry, "width", int, where) if isinstance(entry, dict) and entry.get("width") is not None else None
    return SavedMatrix(m, n, rank, width)


_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    dict: ((dict,), "an object"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a finite number"),
}


def _get(entry: Any, key: str, kind: type, where: str) -> Any:
    """Return the value of a key, if it exists and has the right kind."""
    value = entry.get(key) if isinstance(entry, dict) else None
    types, expected = _KINDS[kind]
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, types) or isinstance(value, bool) or not finite:
        raise InputError(f"{key} of {where} is {json.dumps(value)[:40]}, expected {expected}: {_REMEDY}")
    return value
