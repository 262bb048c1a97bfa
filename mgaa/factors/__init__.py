"""Factorizers: from a weight and the statistics of its input to an ordered basis, and from there to factors of any rank.

Each file of this folder holds one `metric(statistics, *, options) -> Metric` and its `TRAITS` (`mgaa.methods.Traits`); everything else is
shared. `decompose_block` decomposes the matrices of a block once; `factorize` slices a rank out of a decomposition and rounds to the
storage dtype. The factors are `B = U_r` and `A = U_r^T W`, where `A` is refitted by least squares to the stored `B`,
`A = (B^T B)^-1 B^T W`, so that the rounding of `B` costs no more than it must. Weighted at the outputs, with the dual basis `D`:
`A = (D^T B)^-1 D^T W`. Where the metric is centred, the mean of the input returns as a bias, `b' = c + (W - B A) mean`, which is right for
any `B A` and therefore computed from the rounded ones.

Legend: m outputs, n inputs, p = min(m, n), r rank.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgaa.decomposition.cuda_streams import map_concurrently
from mgaa.decomposition.linalg import Spectrum, decompose, symmetric_product, working_bytes
from mgaa.errors import NumericalError, UsageError
from mgaa.methods import load_method
from mgaa.models.lowrank import Factors
from mgaa.statistics.statistics import BlockStatistics


def decompose_block(
    weights: Mapping[str, Float[Tensor, "m n"]], statistics: BlockStatistics, name: str, **options: Any
) -> dict[str, Spectrum]:
    """Decompose the matrices of one block in the metric of factorizer `name`; bases reach up to break-even.

    Args:
        weights: by the linear's name inside the block, on the device to compute on.
        statistics: of the same block.
        name, options: the factorizer and its keyword arguments.
    """
    metric = load_method("factors", name, options)

    def decomposed(linear: str) -> Spectrum:
        weight = weights[linear]
        return decompose(weight, metric(statistics.of(linear), **options), rank=_break_even(weight), name=linear)

    ranks, weighed = {linear: _break_even(weight) for linear, weight in weights.items()}, bool(statistics.gradients)
    sizes = {
        linear: working_bytes(
            weight.shape[0], weight.shape[1], ranks[linear], side=statistics.of(linear).side, weighed=weighed
        )
        for linear, weight in weights.items()
    }
    results = sum((1 + weighed) * 4 * len(weight) * ranks[linear] for linear, weight in weights.items())
    return map_concurrently(decomposed, sizes, {weight.device for weight in weights.values()}, results=results)


def _break_even(weight: Float[Tensor, "m n"]) -> int:
    m, n = weight.shape
    return max(1, (m * n - 1) // (m + n))


def factorize(
    weight: Float[Tensor, "m n"],
    bias: Float[Tensor, " m"] | None,
    spectrum: Spectrum,
    rank: int,
    *,
    dtype: torch.dtype | None = None,
) -> Factors:
    """Factors of `rank` in a dtype, by default that of `weight`; computed in float64, rounded once.

    Raises:
        UsageError: the spectrum holds no basis of that rank.
        NumericalError: an entry leaves the range of the dtype.
    """
    (m, n), largest, dtype = weight.shape, spectrum.basis.shape[1], dtype or weight.dtype
    if not 1 <= rank <= largest:
        raise UsageError(
            f"rank {rank} of a {m} x {n} matrix: expected 1 to {largest}, the basis that was kept; keep the matrix dense instead"
        )
    stored = spectrum.basis[:, :rank].to(dtype).contiguous()
    dense, B = weight.double(), stored.double()
    if spectrum.dual is None:
        cholesky, failed = torch.linalg.cholesky_ex(symmetric_product(B.T, B.T), upper=True)
        refitted = torch.cholesky_solve(B.T @ dense, cholesky, upper=True)
    else:
        dual = spectrum.dual[:, :rank].double()
        refitted, failed = torch.linalg.solve_ex(dual.T @ B, dual.T @ dense)
    refitted = refitted.to(dtype).contiguous()
    if spectrum.mean is not None:
        mean = spectrum.mean.to(dense)
        lost = dense @ mean - B @ (refitted.double() @ mean)
        bias = lost if bias is None else bias.double() + lost
    bias = None if bias is None else bias.to(dtype)
    parts = (refitted, stored) if bias is None else (refitted, stored, bias)
    if failed or not all(bool(torch.isfinite(part).all()) for part in parts):
        raise NumericalError(
            f"factors of rank {rank} leave the range of {dtype}: set backbone.dtype to bfloat16 or float32"
        )
    return Factors(A=refitted, B=stored, bias=bias)


def factorize_linear(model: nn.Module, name: str, spectrum: Spectrum, rank: int) -> Factors:
    """Factors of the linear of that name, its bias included (`factorize`).

    Raises:
        NumericalError: an entry leaves the range of the dtype (the message names the linear).
    """
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    bias = None if linear.bias is None else linear.bias.detach()
    try:
        return factorize(linear.weight.detach(), bias, spectrum, rank)
    except NumericalError as error:
        raise NumericalError(f"{name}: {error}") from error


def save_spectra(spectra: Mapping[str, Spectrum], path: Path) -> None:
    """Write the spectra of one block: energies in float64, bases and their duals in float32."""
    bases = {f"{name}/basis": spectrum.basis for name, spectrum in spectra.items()}
    bases |= {f"{name}/dual": spectrum.dual for name, spectrum in spectra.items() if spectrum.dual is not None}
    save_file(_energies(spectra) | {key: basis.float().cpu().contiguous() for key, basis in bases.items()}, path)


def save_energies(spectra: Mapping[str, Spectrum], path: Path) -> None:
    """Write what `load_energies` reads, without the bases."""
    save_file(_energies(spectra), path)


def _energies(spectra: Mapping[str, Spectrum]) -> dict[str, Tensor]:
    energies = {f"{name}/energies": spectrum.energies.cpu() for name, spectrum in spectra.items()}
    means = {name: spectrum.mean for name, spectrum in spectra.items() if spectrum.mean is not None}
    return energies | {f"{name}/mean": mean.clone().cpu() for name, mean in means.items()}


def load_energies(path: Path) -> tuple[dict[str, Float[Tensor, " p"]], bool]:
    """The energies of a block without its bases, by linear, and whether the factors add biases."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        energies = {
            name.removesuffix("/energies"): file.get_tensor(name) for name in names if name.endswith("/energies")
        }
    return energies, any(name.endswith("/mean") for name in names)


def load_spectra(path: Path, device: str = "cpu") -> dict[str, Spectrum]:
    """Read what `save_spectra` wrote."""
    tensors = load_file(path, device)
    names = [key.removesuffix("/energies") for key in tensors if key.endswith("/energies")]
    return {
        name: Spectrum(*(tensors.get(f"{name}/{part}") for part in ("energies", "basis", "mean", "dual")))  # type: ignore[arg-type]
        for name in names
    }
