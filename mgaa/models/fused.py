"""Layers that hold several matrices in one tensor, split into linears and fused again.

A low rank is a property of one matrix, so q, k and v in one weight, gate and up in one weight, and experts in one three-dimensional weight
must be separated before anything is measured. `unfuse_` replaces them by modules of plain `nn.Linear` that compute the same; from then on a
matrix is a linear, for statistics, factors and files alike. `fuse_` restores the model's own modules. The layout of the rows is in
`mgaa.models.entries`; transposed weights (Conv1D) become linears, too. One layer is copied at a time.

Legend: m outputs (m_g of a group of heads), n inputs, g groups.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from mgaa.errors import InputError, UsageError
from mgaa.models.architecture_schema import Architecture, Fused, has_module
from mgaa.models.architectures import DECODER, parts_with, stacks_of
from mgaa.models.experts import Expert, Experts, make_linear, stack_experts, unstack_experts
from mgaa.models.lowrank import MARK_SHAPE, low_rank_layers


class FusedLinear(nn.Module):
    """Several linears with one input, whose outputs are interleaved as the model expects.

    Attributes:
        names: of the parts, which are children of the module.
        groups: of heads: the output holds for each group the rows of every part; 1 where the parts are concatenated.
        weight: the mark of a split layer, not a weight (see `mgaa.models.lowrank`).
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
        """Return the outputs of the parts, interleaved group by group."""
        outputs = [self.get_submodule(name)(x).unflatten(-1, (self.groups, -1)) for name in self.names]
        return torch.cat(outputs, dim=-1).flatten(-2)


def unfuse_(model: PreTrainedModel, parts: Sequence[str] = DECODER) -> PreTrainedModel:
    """Replace every fused, stacked or transposed layer of the blocks by linears, in place; has no effect on a model that is split already.

    Args:
        parts: parts of the model to split (`mgaa.models.architectures.PARTS`).

    Raises:
        InputError: the architecture has no entry, or the shape of a fused layer contradicts the config.
    """
    for stack in stacks_of(model, parts):
        for index, block in enumerate(stack.blocks):
            unfuse_block_(stack.entry, stack.config, index, block)
    return model


def unfuse_block_(entry: Architecture, config: PreTrainedConfig, index: int, block: nn.Module) -> nn.Module:
    """Split the layers of one block of a model of this entry and config."""
    for name, layer in _fused(entry, block):
        if not isinstance(layer, FusedLinear):
            path = f"{entry.blocks}.{index}.{name.layer}"
            groups, rows = _layout(name, _linear(layer).out_features, config, path)
            block.set_submodule(name.layer, _split_linear(_linear(layer), name.parts, groups, rows))
    experts = _experts(entry, block)
    if experts is not None and not isinstance(experts, Experts):
        path = f"{entry.blocks}.{index}.{entry.experts}"
        block.set_submodule(entry.experts, unstack_experts(experts, path))
    for path, module in list(block.named_modules()):
        if isinstance(module, Conv1D):
            block.set_submodule(path, _linear(module))
    return block.train(block.training)


def fuse_(model: PreTrainedModel, shell: PreTrainedModel | None = None) -> PreTrainedModel:
    """Undo `unfuse_`, in place; `shell` is an empty model of the same class, if one exists already.

    Raises:
        UsageError: the model has low-rank layers, which cannot be fused.
    """
    if low := low_rank_layers(model):
        raise UsageError(f"the model has {len(low)} low-rank layers, expected dense ones: fold them by mgaa.densify")
    if shell is None:
        with torch.device("meta"):
            shell = type(model)(copy.deepcopy(model.config))
    return fuse_parts_(model, shell, fused_parts(model))


def block_fuser(model: PreTrainedModel) -> Callable[[int], None]:
    """Return a function that fuses an offloaded block, by number; the part of the model in memory is fused at once."""
    with torch.device("meta"):
        shell = type(model)(copy.deepcopy(model.config))
    fuse_parts_(model, shell, [part for part in fused_parts(model) if part not in DECODER])
    stack, other = stacks_of(model)[0], stacks_of(shell)[0]

    def fuse(index: int) -> None:
        fuse_block_(stack.entry, stack.blocks[index], other.blocks[index])

    return fuse


def fused_parts(model: PreTrainedModel) -> list[str]:
    """Return the decoder, and the split parts of a vision-language model."""
    return parts_with(model, (name for name, module in model.named_modules() if isinstance(module, FusedLinear)))


def fuse_parts_(model: PreTrainedModel, shell: PreTrainedModel, parts: Sequence[str]) -> PreTrainedModel:
    """Fuse some parts of a model."""
    for stack, other in zip(stacks_of(model, parts), stacks_of(shell, parts), strict=True):
        if len(stack.blocks) != len(other.blocks):
            raise UsageError(
                f"the {stack.part} has {len(stack.blocks)} blocks, but its config says {len(other.blocks)}: set one of them back"
            )
        for block, empty in zip(stack.blocks, other.blocks, strict=True):
            fuse_block_(stack.entry, block, empty)
    return model


def fuse_block_(entry: Architecture, block: nn.Module, empty: nn.Module) -> nn.Module:
    """Fuse the layers of one block; `empty` is that of the shell."""
    for name, layer in _fused(entry, block):
        if isinstance(layer, FusedLinear):
            block.set_submodule(name.layer, _fill_layer(empty.get_submodule(name.layer), *_concatenate(layer)))
    if isinstance(experts := _experts(entry, block), Experts):
        block.set_submodule(entry.experts, stack_experts(experts, empty.get_submodule(entry.experts)))
    for path, module in list(empty.named_modules()):
        if isinstance(module, Conv1D) and isinstance(linear := block.get_submodule(path), nn.Linear):
            block.set_submodule(path, _fill_layer(module, linear.weight, linear.bias))
    return block.train(block.training)


def fused_bias(model: PreTrainedModel, name: str) -> str:
    """Return the name that the bias of a split model's linear has in the model as transformers builds it (if it has any)."""
    owner, _, part = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, Expert):
        return f"{owner.rpartition('.')[0]}.{'down' if part == 'down_proj' else 'gate_up'}_proj_bias"
    return f"{owner if isinstance(module, FusedLinear) else name}.bias"


def _fused(entry: Architecture, block: nn.Module) -> Iterator[tuple[Fused, nn.Module]]:
    return ((fused, block.get_submodule(fused.layer)) for fused in entry.fused if has_module(block, fused.layer))


def _experts(entry: Architecture, block: nn.Module) -> nn.Module | None:
    return block.get_submodule(entry.experts) if entry.experts and has_module(block, entry.experts) else None


def _layout(fused: Fused, rows: int, config: PreTrainedConfig, path: str) -> tuple[int, tuple[int, ...]]:
    """Return the number of groups, and the rows of each part inside a group."""
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
    """Return the layer as an `nn.Linear`: itself, or a Conv1D with its weight transposed."""
    if isinstance(layer, nn.Linear):
        return layer
    if isinstance(layer, Conv1D):
        return make_linear(layer.weight.T, layer.bias)
    raise InputError(
        f"a fused layer is a {type(layer).__name__}, expected nn.Linear or Conv1D: "
        "start from the dense backbone, not from a compressed or quantised one"
    )


def _split_linear(linear: nn.Linear, names: Sequence[str], groups: int, rows: Sequence[int]) -> FusedLinear:
    def split(tensor: Tensor) -> list[Tensor]:
        return [part.flatten(0, 1) for part in torch.split(_grouped(tensor, groups), list(rows), dim=1)]

    biases = [None] * len(names) if linear.bias is None else split(linear.bias)
    pairs = zip(names, split(linear.weight), biases, strict=True)
    return FusedLinear({name: make_linear(weight, bias) for name, weight, bias in pairs}, groups)


def _concatenate(layer: FusedLinear) -> tuple[Float[Tensor, "m n"], Float[Tensor, " m"] | None]:
    """Return the fused weight and bias; a part without a bias gets zeros where another has one."""
    parts: list[nn.Linear] = [layer.get_submodule(name) for name in layer.names]  # type: ignore[misc]

    def join(tensors: list[Tensor]) -> Tensor:
        return torch.cat([_grouped(tensor, layer.groups) for tensor in tensors], dim=1).flatten(0, 1)

    weight = join([part.weight for part in parts])
    if all(part.bias is None for part in parts):
        return weight, None
    return weight, join([weight.new_zeros(p.out_features) if p.bias is None else p.bias for p in parts])


def rows_of(layer: FusedLinear, tensor: Float[Tensor, "m *n"]) -> dict[str, Float[Tensor, "p *n"]]:
    """Split a tensor with a row for each output of a layer by the parts of the layer."""
    linears: list[nn.Linear] = [layer.get_submodule(name) for name in layer.names]  # type: ignore[misc]
    sizes = [linear.out_features // layer.groups for linear in linears]
    parts = torch.split(_grouped(tensor, layer.groups), sizes, dim=1)
    return {name: part.flatten(0, 1) for name, part in zip(layer.names, parts, strict=True)}


def _grouped(tensor: Float[Tensor, "m *n"], groups: int) -> Float[Tensor, "g m_g *n"]:
    return tensor.reshape(groups, -1, *tensor.shape[1:])


def _fill_layer(empty: nn.Module, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"] | None) -> nn.Module:
    """Fill an empty layer of transformers with these tensors."""
    learns, own = weight.requires_grad, weight.detach()
    own = own.T.contiguous() if isinstance(empty, Conv1D) else own
    empty.register_parameter("weight", nn.Parameter(own, requires_grad=learns))
    empty.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=learns))
    return empty
