"""Layers that hold several matrices in one tensor, taken apart into linears and put together again.

A low rank is a property of one matrix, so q, k and v in one weight, gate and up in one weight, and experts in one three-dimensional
weight must be told apart before anything is measured. `unfuse_` puts modules of plain `nn.Linear` in their places that compute the
same; from then on a matrix is a linear, for statistics, factors and files alike. `fuse_` gives the model its own modules back. Where
the rows lie is said in `mgaa.architectures`; transposed weights (Conv1D) become linears, too. One layer is copied at a time.

Legend: m outputs (m_g of a group of heads), n inputs, g groups, E experts of width I, h hidden size, t tokens, k experts of a token.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mgaa.anatomy import Architecture, Fused, has
from mgaa.architectures import DECODER, parts_with, stacks_of
from mgaa.errors import InputError, UsageError
from mgaa.lowrank import MARK_SHAPE, low_rank_layers


class FusedLinear(nn.Module):
    """Several linears of one input, whose outputs lie where the model expects them.

    Attributes:
        names: of the parts, which are children of the module.
        groups: of heads: the output holds for each group the rows of every part; 1 where the parts follow each other whole.
        weight: the mark of a layer that was taken apart, not a weight (see `mgaa.lowrank`).
    """

    weight: Tensor

    def __init__(self, parts: Mapping[str, nn.Module], groups: int) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.names, self.groups = tuple(parts), groups
        first: Tensor = next(iter(parts.values())).weight  # type: ignore[assignment]
        self.register_buffer("weight", first.new_zeros(MARK_SHAPE))

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """The outputs of the parts, interleaved group by group."""
        outputs = [self.get_submodule(name)(x).unflatten(-1, (self.groups, -1)) for name in self.names]
        return torch.cat(outputs, dim=-1).flatten(-2)


class Expert(nn.Module):
    """One gated FFN: `down(act(gate x) * up x)`."""

    def __init__(self, gate_proj: nn.Module, up_proj: nn.Module, down_proj: nn.Module, *, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = gate_proj, up_proj, down_proj, act_fn

    def forward(self, x: Float[Tensor, "t h"]) -> Float[Tensor, "t h"]:
        """The output of the expert."""
        y: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return y


class Experts(nn.ModuleList):
    """The experts of a mixture, with the call of the stacked module of transformers that they replace."""

    def forward(
        self, hidden_states: Float[Tensor, "t h"], top_k_index: Int[Tensor, "t k"], top_k_weights: Float[Tensor, "t k"]
    ) -> Float[Tensor, "t h"]:
        """The weighted sum of what each token's experts make of it; an expert sees its tokens in their order."""
        mixed = torch.zeros_like(hidden_states)
        for index in torch.unique(top_k_index).tolist():
            token, rank = torch.where(top_k_index == index)
            output = self[index](hidden_states[token]) * top_k_weights[token, rank, None]
            mixed.index_add_(0, token, output.to(mixed.dtype))
        return mixed


def unfuse_(model: PreTrainedModel, parts: Sequence[str] = DECODER) -> PreTrainedModel:
    """Replace every fused, stacked or transposed layer of the blocks by linears, in place; changes nothing the second time.

    Args:
        parts: those of the model whose blocks are meant (`mgaa.architectures.PARTS`).

    Raises:
        InputError: the architecture has no entry, or a fused layer has another shape than its config says.
    """
    for stack in stacks_of(model, parts):
        for index, block in enumerate(stack.blocks):
            unfuse_block_(stack.entry, stack.config, index, block)
    return model


def unfuse_block_(entry: Architecture, config: PreTrainedConfig, index: int, block: nn.Module) -> nn.Module:
    """`unfuse_` for one block of a model of this entry and config."""
    for name, layer in _fused(entry, block):
        if not isinstance(layer, FusedLinear):
            path = f"{entry.blocks}.{index}.{name.layer}"
            groups, rows = _layout(name, _linear(layer).out_features, config, path)
            block.set_submodule(name.layer, _apart(_linear(layer), name.parts, groups, rows))
    experts = _experts(entry, block)
    if experts is not None and not isinstance(experts, Experts):
        path = f"{entry.blocks}.{index}.{entry.experts}"
        block.set_submodule(entry.experts, _unstacked(experts, path))
    for path, module in list(block.named_modules()):
        if isinstance(module, Conv1D):
            block.set_submodule(path, _linear(module))
    return block.train(block.training)


def fuse_(model: PreTrainedModel, shell: PreTrainedModel | None = None) -> PreTrainedModel:
    """Undo `unfuse_`, in place; `shell` is an empty model of the same class, if there is one already.

    Raises:
        UsageError: the model has low-rank layers, which have no place in a fused one.
    """
    if low := low_rank_layers(model):
        raise UsageError(f"the model has {len(low)} low-rank layers, expected dense ones: fold them by mgaa.densify")
    if shell is None:
        with torch.device("meta"):
            shell = type(model)(copy.deepcopy(model.config))
    return fuse_parts_(model, shell, fused_parts(model))


def fusing(model: PreTrainedModel) -> Callable[[int], None]:
    """`fuse_` for a model whose blocks stay in their files: what is in memory at once, and what does it to a block, by number."""
    with torch.device("meta"):
        shell = type(model)(copy.deepcopy(model.config))
    fuse_parts_(model, shell, [part for part in fused_parts(model) if part not in DECODER])
    stack, other = stacks_of(model)[0], stacks_of(shell)[0]

    def fuse(index: int) -> None:
        fuse_block_(stack.entry, stack.blocks[index], other.blocks[index])

    return fuse


def fused_parts(model: PreTrainedModel) -> list[str]:
    """The decoder, and the parts of a model that sees which were taken apart."""
    return parts_with(model, (name for name, module in model.named_modules() if isinstance(module, FusedLinear)))


def fuse_parts_(model: PreTrainedModel, shell: PreTrainedModel, parts: Sequence[str]) -> PreTrainedModel:
    """`fuse_` for some parts of a model."""
    for stack, other in zip(stacks_of(model, parts), stacks_of(shell, parts), strict=True):
        if len(stack.blocks) != len(other.blocks):
            raise UsageError(
                f"the {stack.part} has {len(stack.blocks)} blocks, but its config says {len(other.blocks)}: set one of them back"
            )
        for block, empty in zip(stack.blocks, other.blocks, strict=True):
            fuse_block_(stack.entry, block, empty)
    return model


def fuse_block_(entry: Architecture, block: nn.Module, empty: nn.Module) -> nn.Module:
    """`fuse_` for one block; `empty` is that of the shell."""
    for name, layer in _fused(entry, block):
        if isinstance(layer, FusedLinear):
            block.set_submodule(name.layer, _filled(empty.get_submodule(name.layer), *_together(layer)))
    if isinstance(experts := _experts(entry, block), Experts):
        block.set_submodule(entry.experts, _stacked(experts, empty.get_submodule(entry.experts)))
    for path, module in list(empty.named_modules()):
        if isinstance(module, Conv1D) and isinstance(linear := block.get_submodule(path), nn.Linear):
            block.set_submodule(path, _filled(module, linear.weight, linear.bias))
    return block.train(block.training)


def fused_name(model: PreTrainedModel, name: str) -> str:
    """Where a linear of a model that was taken apart lies in the model as transformers builds it."""
    owner = name.rpartition(".")[0]
    return owner if isinstance(model.get_submodule(owner), FusedLinear) else name


def _fused(entry: Architecture, block: nn.Module) -> Iterator[tuple[Fused, nn.Module]]:
    return ((fused, block.get_submodule(fused.layer)) for fused in entry.fused if has(block, fused.layer))


def _experts(entry: Architecture, block: nn.Module) -> nn.Module | None:
    return block.get_submodule(entry.experts) if entry.experts and has(block, entry.experts) else None


def _layout(fused: Fused, rows: int, config: PreTrainedConfig, path: str) -> tuple[int, tuple[int, ...]]:
    """The number of groups, and the rows of each part inside a group."""
    if fused.heads == "none":
        if rows % len(fused.parts):
            raise InputError(f"{path} has {rows} rows, expected {len(fused.parts)} equal parts: {_foreign()}")
        return 1, (rows // len(fused.parts),) * len(fused.parts)
    config = config.get_text_config()
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    shared, rest = divmod(rows - heads * width, 2 * width)  # heads of k, and as many of v
    if rest or shared < 1 or heads % shared:
        raise InputError(
            f"{path} has {rows} rows, expected {heads} heads of q with {width} rows each, and as many heads of k as of v, "
            f"a divisor of {heads}: {_foreign()}"
        )
    groups = shared if fused.heads == "grouped" else 1
    return groups, (heads * width // groups, shared * width // groups, shared * width // groups)


def _foreign() -> str:
    return "the config belongs to another checkpoint; fetch the model again"


def _linear(layer: nn.Module) -> nn.Linear:
    """The layer as an `nn.Linear`: itself, or a Conv1D with its weight transposed."""
    if isinstance(layer, nn.Linear):
        return layer
    if isinstance(layer, Conv1D):
        return _filled_linear(layer.weight.T, layer.bias)
    raise InputError(
        f"a fused layer is a {type(layer).__name__}, expected nn.Linear or Conv1D: "
        "start from the dense backbone, not from a compressed or quantised one"
    )


def _apart(linear: nn.Linear, names: Sequence[str], groups: int, rows: Sequence[int]) -> FusedLinear:
    def split(tensor: Tensor) -> list[Tensor]:
        return [part.flatten(0, 1) for part in torch.split(_grouped(tensor, groups), list(rows), dim=1)]

    biases = [None] * len(names) if linear.bias is None else split(linear.bias)
    pairs = zip(names, split(linear.weight), biases, strict=True)
    return FusedLinear({name: _filled_linear(weight, bias) for name, weight, bias in pairs}, groups)


def _together(layer: FusedLinear) -> tuple[Float[Tensor, "m n"], Float[Tensor, " m"] | None]:
    """The fused weight and bias; a part without a bias has zeros where another has one."""
    parts: list[nn.Linear] = [layer.get_submodule(name) for name in layer.names]  # type: ignore[misc]

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.cat([_grouped(tensor, layer.groups) for tensor in tensors], dim=1).flatten(0, 1)

    weight = join([part.weight for part in parts])
    if all(part.bias is None for part in parts):
        return weight, None
    return weight, join([weight.new_zeros(p.out_features) if p.bias is None else p.bias for p in parts])


def _grouped(tensor: Float[Tensor, "m *n"], groups: int) -> Float[Tensor, "g m_g *n"]:
    return tensor.reshape(groups, -1, *tensor.shape[1:])


def _unstacked(stack: nn.Module, path: str) -> Experts:
    gate_up, down = (getattr(stack, name, torch.empty(0)) for name in ("gate_up_proj", "down_proj"))
    shapes = [tuple(gate_up.shape), tuple(down.shape)]
    if len(shapes[0]) != 3 or shapes[1] != (shapes[0][0], shapes[0][2], shapes[0][1] // 2):
        raise InputError(
            f"{path} has weights gate_up_proj of shape {shapes[0]} and down_proj of {shapes[1]}, expected (E, 2 I, h) and (E, h, I) "
            "of E experts: start from the dense backbone in the format of transformers 5"
        )
    activation: nn.Module = stack.act_fn  # type: ignore[assignment]
    return Experts(
        Expert(*(_filled_linear(weight, None) for weight in (*both.chunk(2), one)), act_fn=activation)
        for both, one in zip(gate_up, down, strict=True)
    )


def _stacked(experts: nn.Module, stack: nn.Module) -> nn.Module:
    """The empty stacked module with the weights of the experts."""
    parts = [[linear.weight.detach() for linear in (e.gate_proj, e.up_proj, e.down_proj)] for e in experts.children()]  # type: ignore[union-attr, operator]
    learns = any(parameter.requires_grad for parameter in experts.parameters())
    stack.gate_up_proj = nn.Parameter(
        torch.stack([torch.cat([gate, up]) for gate, up, _ in parts]), requires_grad=learns
    )
    stack.down_proj = nn.Parameter(torch.stack([down for _, _, down in parts]), requires_grad=learns)
    return stack


def _filled_linear(weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"] | None) -> nn.Linear:
    """A linear with copies of these tensors, so that the fused one can be freed."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(_copy(weight), requires_grad=weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(_copy(bias), requires_grad=bias.requires_grad)
    return linear


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _filled(empty: nn.Module, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"] | None) -> nn.Module:
    """An empty layer of transformers with these tensors."""
    learns, own = weight.requires_grad, weight.detach()
    own = own.T.contiguous() if isinstance(empty, Conv1D) else own
    empty.register_parameter("weight", nn.Parameter(own, requires_grad=learns))
    empty.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=learns))
    return empty
