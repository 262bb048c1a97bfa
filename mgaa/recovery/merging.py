"""Merging of a trained update into its linear, so that no adapter remains in the model.

With the update of LoRA, `s L_B L_A` of rank r (Hu et al. 2021, arXiv 2106.09685):

    dense, also pruned:  W' = W + s L_B L_A                                same shape
    low-rank:            B' = [B, s L_B],  A' = [A; L_A]                   rank k + r, exact, no decomposition
    low-rank, too wide:  W' = B A + s L_B L_A, where (k + r)(m + n) >= m n the dense matrix is smaller

    ... and not storable:  B' = W', A' = 1 (or the reverse) where k + r exceeds m or n, else as above

The last line: a checkpoint can store a bias that the architecture lacks (added by a centred factorizer, `mgaa.factors.afm`) only in a
low-rank layer, so such a layer stays low-rank, even beyond break-even.

LoRAP (arXiv 2404.09695) merges the product and factorizes it again at rank k + r, which gives the same matrix: its rank is at most k + r.
Concatenating the factors costs nothing, and leaves the entries of A and B unchanged.

Diagonals merge into `B`, `B' = B + [Λ_b B_r Λ_d, 0]` (`mgaa.recovery.diagonals`), and change no shape.

Sums and products are computed in float64 and rounded once, to the dtype of the layer. Between `s L_B` and `L_A` each direction is balanced
by a power of two, so that both have about the same norm: `L_B` starts from zero and may be so small that float16 would flush it, and a
power of two changes no digit.

Legend: m outputs, n inputs, k rank of the layer, r rank of the update.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.checkpoints.format import describe
from mgaa.errors import NumericalError
from mgaa.models.fused import unfuse_
from mgaa.models.lowrank import Factors, LowRankLinear, non_finite
from mgaa.recovery.diagonals import Scaling, folded
from mgaa.recovery.plan import Plan


@dataclass(frozen=True, eq=False)
class Update:
    """LoRA's update of a matrix: `scale * B @ A`."""

    A: Float[Tensor, "r n"]
    B: Float[Tensor, "m r"]
    scale: float

    def product(self) -> Float[Tensor, "m n"]:
        """Return the whole matrix in float64."""
        return self.scale * (self.B.double() @ self.A.double())

    def balanced(self) -> tuple[Float[Tensor, "r n"], Float[Tensor, "m r"]]:
        """Return `A` and `scale * B` in float64, the rows of one and the columns of the other of about equal norm."""
        A, B = self.A.double(), self.scale * self.B.double()
        quotient = B.norm(dim=0) / A.norm(dim=1)
        usable = quotient.isfinite() & (quotient > 0)
        root = torch.where(usable, quotient, 1.0).log2().div(2).round().exp2()
        return A * root[:, None], B / root


def merge_(model: PreTrainedModel, updates: Mapping[str, Update | Scaling]) -> None:
    """Merge updates into the linears of those names, in place; the config then describes it.

    All are computed once before the first is put in place, so that an error leaves the model unchanged; memory for one of them is enough.

    Raises:
        NumericalError: an entry is not finite in the dtype of its layer.
    """
    layers, biased = {name: model.get_submodule(name) for name in updates}, _biased(model)
    for name, layer in layers.items():
        _check(name, merged(layer, updates[name], dense=_may_be_dense(layer, name in biased)))
    for name, layer in layers.items():
        model.set_submodule(name, merged(layer, updates[name], dense=_may_be_dense(layer, name in biased)))
    describe(model)


def updates_of(tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, Update | Scaling]:
    """Return the updates to merge, by the name of their linear, from the tensors learnt by a plan."""
    names = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    if plan.method == "diagonals":
        return {name: Scaling(tensors[f"{name}.lambda_b"], tensors[f"{name}.lambda_d"]) for name in names}
    return {name: Update(tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"], plan.scale) for name in names}


@torch.no_grad()
def merged(layer: nn.Module, update: Update | Scaling, *, dense: bool = True) -> nn.Linear | LowRankLinear:
    """Return the layer with its update merged; biases are those of the layer.

    `dense` allows a low-rank layer to become a dense one where that is smaller.
    """
    if isinstance(update, Scaling):
        assert isinstance(layer, LowRankLinear)
        return folded(layer, update)
    here = Update(update.A.to(_weight(layer).device), update.B.to(_weight(layer).device), update.scale)
    if not isinstance(layer, LowRankLinear):
        assert isinstance(layer, nn.Linear)
        return _linear(layer.weight.double() + here.product(), layer)
    rank, (m, n) = layer.rank + len(here.A), (layer.out_features, layer.in_features)
    if rank * (m + n) < m * n or (not dense and rank <= min(m, n)):
        A, B = here.balanced()
        return _low_rank(layer, [layer.A.weight, A], [layer.B.weight, B])
    product = layer.B.weight.double() @ layer.A.weight.double() + here.product()
    if dense:
        return _linear(product, layer.B)
    one = torch.eye(min(m, n), device=product.device)
    return _low_rank(layer, [one], [product]) if n <= m else _low_rank(layer, [product], [one])


def _low_rank(layer: LowRankLinear, A: Sequence[Tensor], B: Sequence[Tensor]) -> LowRankLinear:
    """Make a layer of these concatenated factors that is otherwise like another."""
    dtype, bias = layer.A.weight.dtype, None if layer.B.bias is None else layer.B.bias.detach()
    factors = Factors(torch.cat([part.to(dtype) for part in A]), torch.cat([part.to(dtype) for part in B], dim=1), bias)
    return LowRankLinear.from_factors(factors).train(layer.training).requires_grad_(False)


def _may_be_dense(layer: nn.Module, biased: bool) -> bool:
    return biased or not isinstance(layer, LowRankLinear) or layer.B.bias is None


def _biased(model: PreTrainedModel) -> set[str]:
    """List the linears to which the class of the model gives a bias."""
    with torch.device("meta"):
        shell = unfuse_(type(model)(model.config))
    return {name.removesuffix(".bias") for name in shell.state_dict() if name.endswith(".bias")}


def _linear(weight: Float[Tensor, "m n"], like: nn.Linear) -> nn.Linear:
    """Make a linear of that weight, with the dtype and the bias of another."""
    m, n = weight.shape
    linear = nn.Linear(n, m, bias=like.bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to(like.weight.dtype), requires_grad=False)
    if like.bias is not None:
        linear.bias = nn.Parameter(like.bias.detach(), requires_grad=False)
    return linear.train(like.training)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.A.weight if isinstance(layer, LowRankLinear) else layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _check(name: str, layer: nn.Module) -> None:
    for parameter in layer.parameters():
        if bad := non_finite(parameter):
            raise NumericalError(
                f"{name} has {bad} non-finite entries of {parameter.numel()} in {parameter.dtype} after its update is merged, "
                "expected 0: lower recovery.rate, or set backbone.dtype to bfloat16 or float32"
            )
