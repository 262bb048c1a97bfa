"""Stacked experts split into modules: transformers keeps all of a block in three-dimensional weights, but a low rank is a property of one
matrix.

The stacked class itself tells transformers' kernels how its weights are laid out (gate and up concatenated or interleaved, transposed or
not, with biases or without) and how an expert combines gate and up: `use_experts_implementation` in
https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/integrations/moe.py. Both directions are exact.

Legend: m outputs, n inputs, E experts of width I, h hidden size, t tokens, k experts of a token.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.integrations.moe import _default_apply_gate

from mgaa.errors import InputError

Gated = Callable[[Tensor, Tensor], Tensor]
"""Combines the outputs of the gate and the up projection of an expert."""


class Expert(nn.Module):
    """One gated FFN: `down(gated(gate x, up x))`, where most models have `gated(a, b) = act(a) * b`."""

    def __init__(self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module, *, gated: Gated) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.gated = gate_proj, up_proj, down_proj, gated

    def forward(self, x: Float[Tensor, "t h"]) -> Float[Tensor, "t h"]:
        """Return the output of the expert."""
        y: Tensor = self.down_proj(self.gated(self.gate_proj(x), self.up_proj(x)))
        return y


class Experts(nn.ModuleList):
    """The experts of a mixture, callable like the stacked module of transformers that they replace."""

    def forward(
        self, hidden_states: Float[Tensor, "t h"], top_k_index: Int[Tensor, "t k"], top_k_weights: Float[Tensor, "t k"]
    ) -> Float[Tensor, "t h"]:
        """Return the weighted sum of the outputs of each token's experts; an expert receives its tokens in their order."""
        mixed = torch.zeros_like(hidden_states)
        for index in torch.unique(top_k_index).tolist():
            token, rank = torch.where(top_k_index == index)
            output = self[index](hidden_states[token]) * top_k_weights[token, rank, None]
            mixed.index_add_(0, token, output.to(mixed.dtype))
        return mixed


def unstack_experts(stack: nn.Module, path: str) -> Experts:
    """Split a stacked module into experts with linears of their own; `path` is the name of the stack, for messages.

    Raises:
        InputError: the weights have shapes other than those of gated FFNs.
    """
    gate_up, down = (_rows(stack, getattr(stack, name, torch.empty(0))) for name in ("gate_up_proj", "down_proj"))
    shapes = [tuple(gate_up.shape), tuple(down.shape)]
    if len(shapes[0]) != 3 or shapes[1] != (shapes[0][0], shapes[0][2], shapes[0][1] // 2):
        raise InputError(
            f"{path} has weights gate_up_proj of shape {shapes[0]} and down_proj of {shapes[1]}, expected (E, 2 I, h) and (E, h, I) "
            "of E experts: start from the dense backbone in the format of transformers 5"
        )
    both, one = _biases(stack, len(gate_up))
    gated = _gated(stack)

    def expert(index: int) -> Expert:
        pairs = zip(_halves(stack, gate_up[index]), _halves(stack, both[index]), strict=True)
        gate, up = (make_linear(weight, bias) for weight, bias in pairs if weight is not None)
        return Expert(gate, up, make_linear(down[index], one[index]), gated=gated)

    return Experts(expert(index) for index in range(len(gate_up)))


def stack_experts(experts: nn.Module, stack: nn.Module) -> nn.Module:
    """Fill the empty stacked module with the weights of the experts."""
    parts: list[list[nn.Linear]] = [[e.gate_proj, e.up_proj, e.down_proj] for e in experts.children()]  # type: ignore[list-item]
    learns = any(parameter.requires_grad for parameter in experts.parameters())
    stacked = {
        "gate_up_proj": [_whole(stack, gate.weight, up.weight) for gate, up, _ in parts],
        "down_proj": [down.weight for _, _, down in parts],
    }
    for name, weights in stacked.items():
        tensor = _rows(stack, torch.stack([weight.detach() for weight in weights])).contiguous()
        setattr(stack, name, nn.Parameter(tensor, requires_grad=learns))
    if _has(stack, "has_bias"):
        biases = [[_bias(linear) for linear in linears] for linears in parts]
        both = torch.stack([_whole(stack, gate, up) for gate, up, _ in biases])
        stack.gate_up_proj_bias = nn.Parameter(both, requires_grad=learns)
        stack.down_proj_bias = nn.Parameter(torch.stack([down for _, _, down in biases]), requires_grad=learns)
    return stack


def _has(stack: nn.Module, flag: str) -> bool:
    """Return a layout flag of stacked experts (`transformers.integrations.moe.use_experts_implementation`)."""
    return bool(getattr(stack, flag, flag == "is_concatenated"))


def _rows(stack: nn.Module, weights: Tensor) -> Tensor:
    """Transpose weights of all experts, where the stack stores them transposed, to one row per output, or back."""
    return weights.mT if _has(stack, "is_transposed") and weights.ndim > 1 else weights


def _halves(stack: nn.Module, both: Tensor | None) -> Sequence[Tensor | None]:
    """Split one expert's rows into those of gate and of up: halves, or alternating rows."""
    if both is None:
        return None, None
    return both.chunk(2) if _has(stack, "is_concatenated") else (both[::2], both[1::2])


def _whole(stack: nn.Module, gate: Tensor, up: Tensor) -> Tensor:
    """Join the rows of gate and up in the layout of the stack."""
    gate, up = gate.detach(), up.detach()
    return torch.cat([gate, up]) if _has(stack, "is_concatenated") else torch.stack([gate, up], dim=1).flatten(0, 1)


def _biases(stack: nn.Module, experts: int) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
    """Return the biases of gate and up, and of down, of every expert."""
    if not _has(stack, "has_bias"):
        return [None] * experts, [None] * experts
    return list(stack.gate_up_proj_bias), list(stack.down_proj_bias)  # type: ignore[arg-type]


def _bias(linear: nn.Linear) -> Float[Tensor, " m"]:
    """Return the bias of a linear, zeros where it has none."""
    return linear.weight.detach().new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()


def _gated(stack: nn.Module) -> Gated:
    """Return the combination of gate and up: by the activation, or by the method of the class (a clamped gate, for example)."""
    own = getattr(type(stack), "_apply_gate", _default_apply_gate)
    if own is _default_apply_gate:
        return partial(_product, stack.act_fn)  # type: ignore[arg-type]
    settings = {name: value for name, value in vars(stack).items() if not name.startswith("_")}
    return partial(_as_stacked, own, SimpleNamespace(**settings, **stack._modules), _has(stack, "is_concatenated"))


def _product(act_fn: nn.Module, gate: Float[Tensor, "t i"], up: Float[Tensor, "t i"]) -> Float[Tensor, "t i"]:
    y: Tensor = act_fn(gate) * up
    return y


def _as_stacked(
    own: Callable[..., Tensor], settings: SimpleNamespace, concatenated: bool, gate: Tensor, up: Tensor
) -> Tensor:
    """Apply the method of a stacked class, which reads gate and up from one tensor."""
    both = torch.cat([gate, up], dim=-1) if concatenated else torch.stack([gate, up], dim=-1).flatten(-2)
    return own(settings, both)


def make_linear(weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"] | None) -> nn.Linear:
    """Make a linear with copies of these tensors, so that the fused one can be freed."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(_copy(weight), requires_grad=weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(_copy(bias), requires_grad=bias.requires_grad)
    return linear


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)
