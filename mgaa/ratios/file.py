"""Ratios from a file: reuse those found on a base model for its chat model (`mgaa.allocation`)."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mgaa.allocation.file import load_allocation
from mgaa.budget import Sublayers
from mgaa.errors import UsageError


def allocate(
    sublayers: Sublayers, compression: float, *, path: str | Path, model: str | None = None
) -> Float[Tensor, " s"]:
    """The ratios of the file, unchanged; a file that does not fit is refused.

    Args:
        path: the file.
        model: which model of a run's file; by default the last.

    Raises:
        InputError: the file is missing or damaged.
        UsageError: it is for another model or another compression, or a ratio is outside the band or the reach of the ranks.
    """
    saved = load_allocation(path, model).ratios
    if different := set(saved) ^ set(sublayers.names):
        first = next(name for name in (*sublayers.names, *saved) if name in different)
        place = "the file alone" if first in saved else "the model alone"
        raise UsageError(f"{path} is an allocation file for another model: the sublayer {first} is in {place}")
    ratios = torch.tensor([saved[name] for name in sublayers.names], dtype=torch.float64)
    found = float((ratios * sublayers.parameters).sum() / sublayers.parameters.sum())
    if abs(found - compression) > 1e-9:
        raise UsageError(
            f"the ratios in {path} are for compression {round(found, 9)}, but ratios.compression is {compression}: "
            "set it to that of the file, or take another file"
        )
    _check_bounds(ratios, sublayers, path)
    return ratios


def _check_bounds(ratios: Float[Tensor, " s"], sublayers: Sublayers, path: str | Path) -> None:
    bounds = zip(sublayers.names, ratios.tolist(), sublayers.floors.tolist(), sublayers.caps.tolist(), strict=True)
    for name, ratio, floor, cap in bounds:
        if not floor <= ratio <= cap:
            raise UsageError(
                f"the ratio {ratio} of sublayer {name} in {path} is outside {floor:.6g} to {cap:.6g}, which ratios.band and the lowest "
                "ranks leave: widen ratios.band or set it to null; a smaller ranks.multiple reaches further"
            )
