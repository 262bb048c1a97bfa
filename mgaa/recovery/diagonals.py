"""Two diagonals on a low-rank layer, the post-training of Bolaco (arXiv 2405.10616, EMNLP Findings 2024):

    y = (B A + Λ_b B_r Λ_d A_r) x + b

`B_r` and `A_r` are the first r columns of `B` and rows of `A`, those of the largest energies, because factorizers order them so. Only the
`m + r` entries of the diagonals learn. `Λ_b` starts at zero, so that nothing changes at first, and `Λ_d` at 0.1, so that `Λ_b` has a
gradient. Because the rows `A_r` are a part of `A`, the update merges into `B` and nothing else remains:

    B' = B + [Λ_b B_r Λ_d, 0],    entry by entry  B'_ij = (1 + b_i d_j) B_ij  for j < r

`A`, the bias, the rank, the parameters and the time per token stay the same. Layers that are not products have nothing to scale: dense and
pruned ones stay unchanged.

The paper uses the leading columns, the authors' code draws them at random: here they are the leading ones. Details that the paper leaves
open follow that code: the start of both diagonals, dropout on the input of the update, and no scale on its output (no `alpha`). Its further
settings are values of `mgaa.recovery.Plan`: rank 64, rate 1e-2, batches of 64 in micro-batches of 8, two epochs, 100 steps of warm-up (here
a share of the steps).

Legend: n inputs, m outputs, k rank of the layer, r = min(`Plan.rank`, k) leading directions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mgaa.models.lowrank import Factors, LowRankLinear
from mgaa.recovery.adapters import Adapter
from mgaa.recovery.plan import Plan

START = 0.1
"""Initial value of the entries of `Λ_d`, as in the released code."""


class Diagonals(Adapter):
    """A low-rank layer with its diagonals, which are float32 in any layer.

    Attributes:
        layer: the low-rank layer.
        lambda_b: `Λ_b`, of length m.
        lambda_d: `Λ_d`, of length r.
    """

    def __init__(self, layer: LowRankLinear, plan: Plan) -> None:
        super().__init__()
        device, leading = layer.weight.device, min(plan.rank, layer.rank)
        self.layer = layer
        self.dropout = nn.Dropout(plan.dropout)
        self.lambda_b = nn.Parameter(torch.zeros(layer.out_features, device=device, dtype=torch.float32))
        self.lambda_d = nn.Parameter(torch.full((leading,), START, device=device, dtype=torch.float32))

    @property
    def weight(self) -> Tensor:
        """Mark of the layer (`mgaa.models.lowrank`), for callers that read a linear's dtype or device from it."""
        return self.layer.weight

    @property
    def learnt(self) -> dict[str, nn.Parameter]:
        """Return the two diagonals."""
        return {"lambda_b": self.lambda_b, "lambda_d": self.lambda_d}

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Apply the layer and its update over the last dimension; dropout affects only the input of the update."""
        y: Tensor = self.layer(x)
        leading = len(self.lambda_d)
        A, B = self.layer.A.weight[:leading], self.layer.B.weight[:, :leading]
        inner = self.lambda_d * functional.linear(self.dropout(x), A)
        return y + (self.lambda_b * functional.linear(inner.to(B.dtype), B)).to(y.dtype)


@dataclass(frozen=True, eq=False)
class Scaling:
    """Update of the leading columns of `B`: `Λ_b B_r Λ_d`."""

    b: Float[Tensor, " m"]
    d: Float[Tensor, " r"]


@torch.no_grad()
def folded(layer: LowRankLinear, scaling: Scaling) -> LowRankLinear:
    """Return the layer with the update merged into its `B`, computed in float64 and rounded once; the rest is the layer's own."""
    weight, leading = layer.B.weight, len(scaling.d)
    b, d = (diagonal.to(weight.device, torch.float64) for diagonal in (scaling.b, scaling.d))
    scaled = weight[:, :leading].double() * (1 + torch.outer(b, d))
    B = torch.cat([scaled.to(weight.dtype), weight[:, leading:]], dim=1)
    bias = None if layer.B.bias is None else layer.B.bias.detach()
    made = LowRankLinear.from_factors(Factors(layer.A.weight.detach(), B, bias))
    return made.train(layer.training).requires_grad_(False)
