"""FFNs that are narrower than their config says: pruned, recognised, described, and widened again.

The number of channels inside an FFN concerns no other layer, so it may differ from block to block, which no config of transformers can
express. The compressed checkpoint does (`mgaa.checkpoints.format`), one number per block. A plain checkpoint cannot, so there every FFN is
padded to the widest one by channels of zeros, which change nothing: their inputs to `down` are multiplied by zero.

Legend: m outputs, n inputs, k kept channels.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from mgaa.errors import InputError, UsageError
from mgaa.models.architecture_schema import Architecture
from mgaa.models.architectures import architecture_of, decoder_blocks, has_entry

KNOWN = ({"gate", "up", "down"}, {"up", "down"})
"""The FFNs whose width can change: gated (SwiGLU, GeGLU) and plain."""


def is_known(roles: Sequence[str]) -> bool:
    """Return whether linears of these roles form an FFN of a kind in `KNOWN`; a mixture of experts has each role several times."""
    return set(roles) in KNOWN and len(roles) == len(set(roles))


def ffn_linears(entry: Architecture, block: nn.Module) -> dict[str, str]:
    """Return the linears of the FFN of a block by name, with their roles; empty where its kind is not in `KNOWN`."""
    groups = [group for sublayer in entry.sublayers if sublayer.name == "ffn" for group in sublayer.groups(block)]
    roles = [role for group in groups for role in group.roles]
    names = [name for group in groups for name in group.linears]
    return dict(zip(names, roles, strict=True)) if is_known(roles) else {}


def ffn_widths(model: PreTrainedModel) -> list[int | None]:
    """Return the width of every block's FFN where it is not the config's, else `None`; empty where all are, or none can be pruned."""
    if not has_entry(model.config) or (entry := architecture_of(model.config)).experts:
        return []
    dense = entry.ffn_width(model.config)
    widths = [_width(entry, block) for block in decoder_blocks(model)]
    narrow = [None if width == dense else width for width in widths]
    return narrow if any(width is not None for width in narrow) else []


@torch.no_grad()
def prune_(model: PreTrainedModel, kept: Mapping[int, Int[Tensor, " k"]]) -> PreTrainedModel:
    """Keep only these channels of the FFNs of some blocks, by block, in place; the model must be split (`mgaa.models.fused`).

    Raises:
        UsageError: the block does not exist, has no FFN of a known kind, or lacks such a channel.
    """
    for index, channels in kept.items():
        for place, linear, role in _linears(model, index):
            side = 1 if role == "down" else 0
            count = linear.weight.shape[side]
            if len(channels) == 0 or not 0 <= int(channels.min()) <= int(channels.max()) < count:
                raise UsageError(
                    f"the {len(channels)} channels to keep of {place} are not all between 0 and {count - 1}: give at least one, and "
                    "those of this model"
                )
            own = channels.to(linear.weight.device)
            bias = linear.bias if linear.bias is None or side else linear.bias[own]
            decoder_blocks(model)[index].set_submodule(
                place, _like(linear, linear.weight.index_select(side, own), bias)
            )
    return model


def narrow_(model: PreTrainedModel, widths: object) -> PreTrainedModel:
    """Give the FFNs of a model without weights the widths in a config, in place, before its weights are loaded.

    Raises:
        InputError: the widths do not fit the model.
    """
    blocks = len(decoder_blocks(model))
    if not isinstance(widths, list) or len(widths) != blocks:
        raise InputError(
            f"quantization_config has the widths {widths!r}, expected one for each of {blocks} blocks: {_EDITED}"
        )
    for index, width in enumerate(widths):
        if width is not None:
            for place, linear, role in _linears(model, index):
                m, n = linear.weight.shape
                if (
                    isinstance(width, bool)
                    or not isinstance(width, int)
                    or not 1 <= width <= (n if role == "down" else m)
                ):
                    raise InputError(
                        f"quantization_config gives the FFN of block {index} the width {width!r}, expected null or 1 to "
                        f"{n if role == 'down' else m}: {_EDITED}"
                    )
                rows, columns = (m, width) if role == "down" else (width, n)
                bias = None if linear.bias is None else linear.bias.new_empty(rows)
                decoder_blocks(model)[index].set_submodule(
                    place, _like(linear, linear.weight.new_empty(rows, columns), bias)
                )
    return model


def widest(model: PreTrainedModel) -> int | None:
    """Return the width to which every FFN is to be padded; `None` where all have the width of the config."""
    if not ffn_widths(model):
        return None
    entry = architecture_of(model.config)
    return max(width for block in decoder_blocks(model) if (width := _width(entry, block)) is not None)


@torch.no_grad()
def widen_block_(model: PreTrainedModel, index: int, wide: int) -> None:
    """Pad the FFN of a block to a width with channels of zeros, in place."""
    for place, linear, role in _linears(model, index):
        m, n = linear.weight.shape
        missing = (0, wide - n) if role == "down" else (0, 0, 0, wide - m)
        bias = linear.bias if linear.bias is None or role == "down" else pad(linear.bias, (0, wide - m))
        decoder_blocks(model)[index].set_submodule(place, _like(linear, pad(linear.weight, missing), bias))


_EDITED = "config.json was edited or is damaged; restore it from the compression run"


def _width(entry: Architecture, block: nn.Module) -> int | None:
    """Return the channels of the FFN of a block; `None` for a layer that was not split (a Conv1D)."""
    down = next((name for name, role in ffn_linears(entry, block).items() if role == "down"), None)
    width = None if down is None else getattr(block.get_submodule(down), "in_features", None)
    return None if width is None else int(width)


def _linears(model: PreTrainedModel, index: int) -> Iterator[tuple[str, nn.Linear, str]]:
    """Return the linears of the FFN of a block: place inside the block, module, role."""
    blocks = decoder_blocks(model)
    if not 0 <= index < len(blocks):
        raise UsageError(
            f"there is no block {index} in a model with {len(blocks)} blocks: expected 0 to {len(blocks) - 1}"
        )
    linears = ffn_linears(architecture_of(model.config), blocks[index])
    if not linears:
        raise UsageError(
            f"block {index} has no FFN with one gate or none, one up and one down: it has no width that can change"
        )
    for place, role in linears.items():
        linear = blocks[index].get_submodule(place)
        if not isinstance(linear, nn.Linear):
            raise UsageError(
                f"{place} of block {index} is a {type(linear).__name__}, expected nn.Linear: an FFN is pruned or factorized"
            )
        yield place, linear, role


def _like(linear: nn.Linear, weight: Float[Tensor, "m n"], bias: Float[Tensor, " m"] | None) -> nn.Linear:
    """Make a linear with these tensors that is otherwise like another."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach(), requires_grad=linear.weight.requires_grad)
    return made.train(linear.training)
