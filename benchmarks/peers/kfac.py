"""KFAC-SVD (Thoma et al., ICML 2026, with LEMS): the SVD of a weight between the moments of its inputs and of its output gradients.

With `C` and `R` the two moments, computed and shrunk as described in `benchmarks/peers/lems.py`, `C = S S^T` and `R = T T^T` by Cholesky,
`T^T W S = U diag(s) V^T`, and the factors of rank r are `B = T^-T U_r` and `A = U_r^T T^T W`: what is nearest to W in the norm
`||T^T (W - W') S||`. Without bias, as theirs. The public code multiplies by `T` in the place of `T^T`, which is the norm of another matrix
than R; the increase of log-perplexity is then larger (stories260K under LEMS: 0.732 for 0.704 at 0.2, 2.149 for 2.101 at 0.4).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.peers.gradients import pass_back
from mgaa.models.lowrank import Factors

EDGE = 0.125
"""Fraction of a sequence at either end whose gradients are left out."""
INPUTS, OUTPUTS = 0.1, 0.3
"""Shrinkage of the two moments."""


@dataclass(frozen=True, eq=False)
class Weighted:
    """Energies `s^2`, and both sides of the factors, float64; a rank is a prefix."""

    energies: Float[Tensor, " p"]
    left: Float[Tensor, "m p"]
    right: Float[Tensor, "p n"]
    dtype: torch.dtype

    def factors(self, rank: int) -> Factors:
        """Factors in the dtype of the weight."""
        B, A = self.left[:, :rank], self.right[:rank]
        return Factors(A=A.to(self.dtype).contiguous(), B=B.to(self.dtype).contiguous())


def weighted_spectra(model: PreTrainedModel, tokens: Int[Tensor, "s t"], names: Sequence[str]) -> dict[str, Weighted]:
    """Decompositions of all linear layers in `names`, by one backward pass over the calibration tokens."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    edge = int(EDGE * tokens.shape[1])

    def add(name: str, x: Tensor, g: Tensor) -> None:
        g = held(g[:, edge : g.shape[1] - edge]).flatten(0, 1)
        x = x.flatten(0, 1)
        inputs[name] = inputs.get(name, 0) + (x.T @ x).double()
        outputs[name] = outputs.get(name, 0) + (g.T @ g).double()

    pass_back(model, tokens, names, add)
    return {
        name: weighted(
            model.get_submodule(name).weight.detach(), shrunk(inputs[name], INPUTS), shrunk(outputs[name], OUTPUTS)
        )
        for name in names
    }


def weighted(weight: Float[Tensor, "m n"], C: Float[Tensor, "n n"], R: Float[Tensor, "m m"]) -> Weighted:
    """Decompose a weight between two positive definite moments."""
    S, T = torch.linalg.cholesky(C), torch.linalg.cholesky(R)
    whole = T.T @ weight.double()
    U, s, _ = torch.linalg.svd(whole @ S, full_matrices=False)
    left = torch.linalg.solve_triangular(T.T, U, upper=True)
    return Weighted(s.square(), left, U.T @ whole, weight.dtype)


def shrunk(moment: Float[Tensor, "d d"], share: float) -> Float[Tensor, "d d"]:
    """Moment with a fraction of it replaced by the mean of its diagonal."""
    mean = moment.diagonal().mean().clamp(min=1e-300)
    return (1 - share) * moment + share * mean * torch.eye(len(moment), dtype=moment.dtype)


def held(g: Float[Tensor, "b t m"]) -> Float[Tensor, "b t m"]:
    """Gradients with norms clipped to 0.1 to 10 times the mean norm in their sequence; zeros stay."""
    norms = g.norm(dim=2, keepdim=True)
    some = norms >= 1e-10
    mean = norms.where(some, 0.0).sum(1, keepdim=True) / some.sum(1, keepdim=True).clamp(min=1)
    factor: Tensor = norms.clamp(min=0.1 * mean, max=10 * mean).where(some, norms) / norms.clamp(min=1e-10)
    return g * factor
