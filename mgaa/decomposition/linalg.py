"""The decomposition that all factorizers share.

For the error `||(W - W') S||_F` with any metric `M = S S^T` of the inputs, the best rank-r approximation is `W' = U_r U_r^T W`,
where `U_r` holds the top eigenvectors of `W M W^T`, and the squared error is the sum of the dropped eigenvalues (the *energies*).
There is no Cholesky factor and no inverse, so singular metrics need no special case; a factorizer is the choice of `M`. One decomposition
serves every rank, because a rank is a prefix of the basis.

The smaller side is decomposed: `W M W^T` (m x m) where m <= n; a tall weight is `W = Q R` first, and the eigenvectors `V` of `R M R^T`
(n x n) give `U = Q V`. `Q` is never formed: its reflectors are applied to `V`, once, so that every later factorization is a slice.
Everything is float64: a float32 eigendecomposition of a Gram matrix loses per cents of the optimum once the first eigenvalue is 1e6 times
the last kept one, and trained transformers have such layers. The basis is kept in float32 unless the weight itself is finer: `B` is stored
in the dtype of the weight, and `A` is fitted to what is stored.

Where errors are also weighted at the outputs, `||L^T (W - W') S||_F` with `L L^T = Gamma`, `L^T W` is decomposed instead: with its left
vectors `U_r` the optimum is `B = L^-T U_r`, `A = U_r^T L^T W`. Any root `L` gives the same; the triangular one is the cheapest.

Legend: m outputs, n inputs, p = min(m, n), r rank, d = n or m, the side on which the metric is known.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mgaa.errors import NumericalError

DAMPING = 1e-12
"""Relative weight of `tr(M)/n I` added to the metric: it decides only the directions that no data reaches.

Measured on log-spaced spectra of condition 1e10, ranks up to break-even: 1e-8 costs up to 9 % of the optimum squared error of a
1024 x 64 matrix and 2e-4 of a 96 x 24 one, 1e-12 at most 1e-10. Smaller values drown in the rounding of float64."""


@dataclass(frozen=True)
class Metric:
    """Quadratic form in which a factorizer measures the error of a layer.

    Attributes:
        moment: `M` itself, as a matrix or as its diagonal (`side="input"`, d = n), or `W M W^T` (`side="output"`, d = m).
        side: which of the two `moment` is.
        scale: `tr(M) / n`, the mean square of an input channel, for the relative damping.
        mean: what centring removes from the input, to be returned as a bias; `None` where `M` is not centred.
        output: `Gamma`, the positive definite weight of errors at the outputs; `None` where all weigh the same.
    """

    moment: Float[Tensor, "d d"] | Float[Tensor, " d"]
    side: Literal["input", "output"]
    scale: float
    mean: Float[Tensor, " n"] | None = None
    output: Float[Tensor, "m m"] | None = None


@dataclass(frozen=True)
class Spectrum:
    """Energies of all ranks and an ordered basis.

    Attributes:
        energies: eigenvalues of `W M W^T`, descending, not negative; the squared error of rank r is the sum of `energies[r:]`. float64.
        basis: leading eigenvectors `U_k`, orthonormal; float32, or float64 for a weight in float64. With weighted outputs: `L^-T U_k`.
        mean: as in the metric.
        dual: `L U_k = Gamma basis`, with `dual^T basis = I`: projects onto the basis. `None` where that is the basis itself.
    """

    energies: Float[Tensor, " p"]
    basis: Float[Tensor, "m k"]
    mean: Float[Tensor, " n"] | None = None
    dual: Float[Tensor, "m k"] | None = None


def decompose(
    weight: Float[Tensor, "m n"], metric: Metric, *, rank: int | None = None, name: str = "a matrix"
) -> Spectrum:
    """Compute energies and the first `rank` basis vectors (all if `None`) of `W M W^T`, in float64 on the weight's device.

    Equivalent to the squared singular values and left vectors of `W S` with `S S^T = M`, without forming `S`. A zero metric (an input that
    is always zero) yields the basis of the plain SVD, zero energies and a warning. `name` is for messages.

    Raises:
        NumericalError: the weight or the metric is not finite.
    """
    (m, n), kept = weight.shape, torch.promote_types(weight.dtype, torch.float32)
    factor, reflectors, root = weight.double(), None, None
    silent = metric.scale <= 0  # False for NaN, which must reach the check below
    if metric.output is not None and not silent:
        root = _root(metric.output, name)
        factor = root.T @ factor
        if metric.side == "output":
            metric = replace(metric, moment=root.T @ metric.moment.double() @ root)
    if m > n:
        reflectors = torch.geqrf(factor)
        factor = reflectors.a[:n].triu()
    if silent:
        warnings.warn(
            f"the input of {name} is zero (for centred metrics: constant) on all calibration tokens, or its output has no effect: "
            "it gets the plain SVD; calibrate with more text if that is not the model's nature",
            stacklevel=1,
        )
    gram = _damped_gram(factor, metric, 1.0 if silent else DAMPING * metric.scale)
    del factor
    if not all(bool(torch.isfinite(part).all()) for part in (gram, metric.mean) if part is not None):
        raise NumericalError(
            f"W M W^T of {name}, or the mean of its input, has non-finite entries: its weight or its input statistics "
            "are damaged; check the weights and calibrate again"
        )
    values, vectors = torch.linalg.eigh(gram, UPLO="U")
    del gram
    energies = torch.zeros_like(values) if silent else values.flip(0).clamp(min=0.0)
    basis = vectors[:, -min(rank or m, m, n) :].flip(1)
    del vectors
    if reflectors is not None:
        basis = torch.ormqr(*reflectors, torch.cat([basis, basis.new_zeros(m - n, basis.shape[1])]))
    if root is None:
        return Spectrum(energies, fix_signs(basis.to(kept)), metric.mean)
    basis = fix_signs(basis)
    unweighed = torch.linalg.solve_triangular(root.T, basis, upper=True)
    return Spectrum(energies, unweighed.to(kept), metric.mean, (root @ basis).to(kept))


def plain_energies(weight: Float[Tensor, "m n"]) -> Float[Tensor, " p"]:
    """Return the squared singular values of a weight, descending: its energies in no metric but the identity. float64, on its device."""
    values: Tensor = torch.linalg.svdvals(weight.double())
    return values.square()


def _root(moment: Float[Tensor, "m m"], name: str) -> Float[Tensor, "m m"]:
    """Return the lower triangular `L` with `L L^T` the moment, float64."""
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(moment.double())
    if failed or not bool(torch.isfinite(root).all()):
        raise NumericalError(
            f"the second moment of the gradients at {name} is not finite or not positive definite, expected what calibration and a "
            "positive factors.damping give: calibrate again, or raise factors.damping"
        )
    return root


def working_bytes(
    m: int, n: int, rank: int, *, side: Literal["input", "output"] = "input", weighed: bool = False
) -> int:
    """Return the peak bytes of `decompose`, including the result but not weight and metric, which exist already.

    The candidates for the peak: the reflectors are computed; the Gram matrix is formed; the eigenproblem is solved, in a workspace of two
    matrices (`syevd` of LAPACK and cuSOLVER); the reflectors are applied to the eigenvectors.

    Args:
        rank: of the basis.
        side: of the metric.
        weighed: whether errors are weighted at the outputs, whose root is then held throughout.
    """
    p, root = min(m, n), m * m if weighed else 0
    reflectors, triangle = (m * n, n * n) if m > n else (0, m * n)
    moments = (
        2 * m * n if m > n else 0,
        reflectors + triangle + (p * n if side == "input" else 0) + (1 + 1 / PANELS) * p * p,
        reflectors + 4 * p * p,
        reflectors + n * rank + 2 * m * rank if m > n else p * p + m * rank,
    )
    at_once = 2 * m * n + (m * m if side == "output" else 0), 2 * m * rank  # `L^T W` and the moment; basis and dual
    return int(8 * (max(*moments, *(at_once if weighed else ())) + root))


def _damped_gram(factor: Float[Tensor, "p n"], metric: Metric, damping: float) -> Float[Tensor, "p p"]:
    """Return `W (M + damping I) W^T` in float64; only its upper triangle is defined."""
    moment = metric.moment.double()
    if metric.side == "output":
        return symmetric_product(factor, factor).mul_(damping).add_(moment)
    if moment.ndim == 1:
        return symmetric_product(factor * (moment + damping), factor)
    return symmetric_product(torch.addmm(factor, factor, moment, beta=damping), factor)


PANELS = 4
"""Row panels of a symmetric product: 4 leave 62 % of the work; more save little and make the products narrow."""


def symmetric_product(left: Float[Tensor, "p n"], right: Float[Tensor, "p n"]) -> Float[Tensor, "p p"]:
    """Return the upper triangle of `left right^T`, for a product that is known to be symmetric; below the diagonal it is undefined.

    Computed by panels of rows, starting at the diagonal: torch has no product that computes one triangle only.
    """
    size = len(left)
    product = left.new_zeros(size, size)
    for rows in torch.arange(size).chunk(PANELS):
        start, stop = int(rows[0]), int(rows[-1]) + 1
        product[start:stop, start:] = left[start:stop] @ right[start:].T
    return product


def fix_signs(vectors: Float[Tensor, "p k"]) -> Float[Tensor, "p k"]:
    """Flip each column so that its entry of largest magnitude is positive (the first among equals)."""
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0).to(vectors)
