"""The one decomposition behind every factorizer.

For the error `||(W - W') S||_F` with any metric `M = S S^T` of the inputs, the best rank-r approximation is `W' = U_r U_r^T W`,
where `U_r` holds the top eigenvectors of `W M W^T`, and the squared error is the sum of the dropped eigenvalues (the *energies*).
There is no Cholesky factor and no inverse, so singular metrics are nothing special; a factorizer is the choice of `M`. One
decomposition serves every rank, because a rank is a prefix of the basis.

The smaller side is decomposed: `U` of `W M W^T` (m x m) where m <= n, else `W = Q R` and `V` of `R M R^T` (n x n), `U = Q V`. Everything
is float64: a float32 eigendecomposition of a Gram matrix loses percents of the optimum once the first eigenvalue is 1e6 times
the last kept one, and trained transformers have such layers.

Legend: m outputs, n inputs, p = min(m, n), r rank, d = n or m, the side on which the metric is known.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mgaa.errors import NumericalError

DAMPING = 1e-12
"""Relative weight of `tr(M)/n I` added to the metric: it decides the directions that no data reaches, and only those.

Measured on log-spaced spectra of condition 1e10, ranks up to break-even: 1e-8 costs up to 9 % of the optimum squared error of a
1024 x 64 matrix and 2e-4 of a 96 x 24 one, 1e-12 at most 1e-10. Smaller values drown in the rounding of float64."""


@dataclass(frozen=True)
class Metric:
    """The quadratic form in which a factorizer measures the error of a layer.

    Attributes:
        moment: `M` itself, as a matrix or as its diagonal (`side="input"`, d = n), or `W M W^T` (`side="output"`, d = m).
        side: which of the two `moment` is.
        scale: `tr(M) / n`, the mean square of an input channel, for the relative damping.
        mean: what centring has taken out of the input, to return as a bias; `None` where `M` is not centred.
    """

    moment: Float[Tensor, "d d"] | Float[Tensor, " d"]
    side: Literal["input", "output"]
    scale: float
    mean: Float[Tensor, " n"] | None = None


@dataclass(frozen=True)
class Spectrum:
    """Energies of all ranks and an ordered basis.

    Attributes:
        energies: eigenvalues of `W M W^T`, falling, not negative; the squared error of rank r is the sum of `energies[r:]`.
        basis: leading eigenvectors: columns of `U` where m <= n, of `V` where m > n (see the file's idea).
        mean: as in the metric.
    """

    energies: Float[Tensor, " p"]
    basis: Float[Tensor, "p k"]
    mean: Float[Tensor, " n"] | None = None


def decompose(
    weight: Float[Tensor, "m n"], metric: Metric, *, rank: int | None = None, name: str = "a matrix"
) -> Spectrum:
    """Energies and the first `rank` basis vectors (all of them if `None`) of `W M W^T`, in float64 on the weight's device.

    Equivalent to the squared singular values and left vectors of `W S` with `S S^T = M`, without forming `S`. A metric of
    zeros (an input that is always zero) gives the basis of the plain SVD, zero energies and a warning. `name` is for messages.

    Raises:
        NumericalError: the weight or the metric is not finite.
    """
    weight = weight.double()
    factor = weight if weight.shape[0] <= weight.shape[1] else _thin_qr(weight)[1]
    silent = metric.scale <= 0  # not so where it is NaN, which shall reach the check below
    if silent:
        warnings.warn(
            f"the input of {name} is zero (for centred metrics: constant) on all calibration tokens: "
            "it gets the plain SVD; calibrate with more text if that is not the model's nature",
            stacklevel=1,
        )
    gram = _gram(factor, metric) + (1.0 if silent else DAMPING * metric.scale) * factor @ factor.T
    if not all(bool(torch.isfinite(part).all()) for part in (gram, metric.mean) if part is not None):
        raise NumericalError(
            f"W M W^T of {name}, or the mean of its input, has non-finite entries: its weight or its input statistics "
            "are damaged; check the weights and calibrate again"
        )
    values, vectors = torch.linalg.eigh(gram)
    energies = torch.zeros_like(values) if silent else values.flip(0).clamp(min=0.0)
    return Spectrum(energies, fix_signs(vectors.flip(1))[:, :rank], metric.mean)


def _gram(factor: Float[Tensor, "p n"], metric: Metric) -> Float[Tensor, "p p"]:
    if metric.side == "output":
        return metric.moment.double()
    moment = metric.moment.double()
    product = factor * moment if moment.ndim == 1 else factor @ moment
    gram = product @ factor.T
    return (gram + gram.T) / 2


def fix_signs(vectors: Float[Tensor, "p k"]) -> Float[Tensor, "p k"]:
    """Turn each column so that its entry of largest magnitude is positive (the first of equals)."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0)


def left_basis(weight: Float[Tensor, "m n"], spectrum: Spectrum, rank: int) -> Float[Tensor, "m r"]:
    """`U_r`: the basis itself where m <= n, `Q V_r` where m > n."""
    basis = spectrum.basis[:, :rank].double()
    if weight.shape[0] <= weight.shape[1]:
        return basis
    return _thin_qr(weight.double())[0] @ basis


def _thin_qr(weight: Float[Tensor, "m n"]) -> tuple[Float[Tensor, "m n"], Float[Tensor, "n n"]]:
    """`Q` and `R` with the diagonal of `R` positive, so that a basis found on one device serves factors made on another."""
    q, r = torch.linalg.qr(weight)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(weight)
    return q * signs, r * signs.unsqueeze(1)
