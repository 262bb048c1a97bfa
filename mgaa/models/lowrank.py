"""A linear layer as two thin ones: `y = B (A x) + b` in place of `y = W x + b`.

`A` and `B` are ordinary `nn.Linear` modules, so operations on linears (casting, moving, compiling, LoRA adapters) work on them; at rank r
the layer costs `r (m + n)` parameters and as many multiplications per token, instead of `m n`.

The layer also owns a mark: one zero under the name `weight`, where a dense layer keeps its matrix. It takes no part in the computation. Its
shape, (1, 1, 1), matches no matrix and broadcasts to none, so a program that reads the tensors of a compressed model without supporting the
factors fails with a size mismatch at once and cannot fill the layer with random numbers. It is not a parameter, it moves and casts with the
layer, and `layer.weight.dtype` and `.device` return what callers expect.

Legend: n inputs, m outputs, r rank.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mgaa.errors import NumericalError, UsageError

MARK_SHAPE = (1, 1, 1)


@dataclass(frozen=True, eq=False)
class Factors:
    """Replacement of a weight matrix: `W` is about `B @ A`; `bias` is the whole bias, including that of the dense layer."""

    A: Float[Tensor, "r n"]
    B: Float[Tensor, "m r"]
    bias: Float[Tensor, " m"] | None = None


@dataclass(frozen=True, eq=False)
class Dense:
    """Replacement of a weight matrix that stays dense; `bias` is the whole bias, for a layer that has one."""

    weight: Float[Tensor, "m n"]
    bias: Float[Tensor, " m"] | None = None


class LowRankLinear(nn.Module):
    """`B (A x)`: a linear map of rank at most `rank`.

    Attributes:
        A: `nn.Linear(in_features, rank)` without bias.
        B: `nn.Linear(rank, out_features)`, with the bias of the layer if it has one.
        weight: the mark of a low-rank layer (module docstring), not a weight.
    """

    weight: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= rank <= min(in_features, out_features):
            raise UsageError(
                f"rank {rank} of a {out_features} x {in_features} matrix: "
                f"expected 1 to {min(in_features, out_features)}; keep the matrix dense instead"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.rank = rank
        self.A = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.B = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)
        self.register_buffer("weight", torch.zeros(MARK_SHAPE, device=device, dtype=dtype))

    @property
    def bias(self) -> nn.Parameter | None:
        """Bias of the layer, which `B` adds; callers that only know linears read it here."""
        return self.B.bias

    @classmethod
    def from_factors(cls, factors: Factors) -> "LowRankLinear":
        """Make the layer that computes with these tensors themselves, not copies."""
        (rank, n), (m, inner) = factors.A.shape, factors.B.shape
        if inner != rank or (factors.bias is not None and factors.bias.shape != (m,)):
            bias = "none" if factors.bias is None else tuple(factors.bias.shape)
            raise UsageError(
                f"factors of shapes A {(rank, n)}, B {(m, inner)}, bias {bias} do not fit: "
                "expected A (r, n), B (m, r), bias (m,) or none"
            )
        layer = cls(n, m, rank, bias=factors.bias is not None, device="meta")
        layer.A.weight = nn.Parameter(factors.A)
        layer.B.weight = nn.Parameter(factors.B)
        if factors.bias is not None:
            layer.B.bias = nn.Parameter(factors.bias)
        layer.weight = factors.A.new_zeros(MARK_SHAPE)
        return layer

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Return `B (A x) + b` over the last dimension."""
        y: Tensor = self.B(self.A(x))
        return y

    def factors(self) -> Factors:
        """Return the tensors themselves that the layer computes with."""
        bias = self.B.bias
        return Factors(self.A.weight.detach(), self.B.weight.detach(), None if bias is None else bias.detach())

    @torch.no_grad()
    def dense(self) -> nn.Linear:
        """Return the equivalent `nn.Linear`; the product is computed in float64 and rounded once."""
        weight, bias = self.B.weight, self.B.bias
        dense = nn.Linear(self.in_features, self.out_features, bias=bias is not None, device="meta")
        learns, product = weight.requires_grad, weight.double() @ self.A.weight.double()
        dense.weight = nn.Parameter(product.to(weight.dtype), requires_grad=learns)
        if bias is not None:
            dense.bias = nn.Parameter(bias.detach(), requires_grad=learns)
        return dense.train(self.training)

    def extra_repr(self) -> str:
        """Return the summary of the layer that `print(model)` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}"


def low_rank_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """Return every `LowRankLinear` of a model, by dotted name, in the order of its modules."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LowRankLinear)}


def non_finite(tensor: Tensor) -> int:
    """Count the entries that are NaN or infinite."""
    finite = torch.isfinite(tensor.detach())
    return 0 if bool(finite.all()) else int((~finite).sum())


def check_finite(block: nn.Module, path: str) -> None:
    """Refuse a module with non-finite weights; `path` is its name.

    Raises:
        NumericalError: an entry is not finite.
    """
    for name, weight in block.named_parameters():
        if bad := non_finite(weight):
            raise NumericalError(
                f"{path}.{name} has {bad} non-finite entries of {weight.numel()}: the model is damaged, load it again"
            )
