"""Schema of architectures: the blocks of a decoder, their residual branches, and the linears in them. Entries are in
`mgaa.models.entries`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn
from transformers import PreTrainedConfig

_ROLES = {"attention": (("q", "k", "v"), ("o",)), "ffn": (("gate", "up"), ("down",))}
"""Roles of the linears by sublayer: for the first of a pair of inputs, and for the second."""


@dataclass(frozen=True)
class Group:
    """Linears of a block that read the same tensor; `expert` is the index where the router chooses their tokens.

    `roles` name the function of each linear in its sublayer: `q`, `k`, `v` and `o`, or `gate`, `up` and `down`.
    """

    linears: tuple[str, ...]
    roles: tuple[str, ...]
    expert: int | None = None


@dataclass(frozen=True)
class Sublayer:
    """One residual branch of a decoder block.

    Attributes:
        name: `attention` or `ffn`.
        module: the module of the block that holds the linears; empty for the block itself.
        inputs: one text per distinct input: the linears that read it, below `module`. `*` stands for every expert. Linears that a block
            lacks are skipped (a dense FFN between mixtures of experts), but every linear of a block must be named. Inputs come in pairs
            that determine the roles: q, k and v, then o; gate and up (or up alone), then down.
        output: the module of the block whose output joins the residual stream; empty for `module`.
    """

    name: str
    module: str
    inputs: tuple[str, ...]
    output: str = ""

    def groups(self, block: nn.Module) -> list[Group]:
        """Return the linears that `block` has, grouped by shared input."""
        prefix = f"{self.module}." if self.module else ""
        patterns = [[prefix + name for name in names.split()] for names in self.inputs]
        groups = (
            group
            for index, pattern in enumerate(patterns)
            for group in _expand_pattern(dict(zip(pattern, self._roles(index, len(pattern)), strict=True)), block)
        )
        return [group for group in groups if group.linears]

    def _roles(self, index: int, linears: int) -> tuple[str, ...]:
        """Return the roles of the linears of one entry of `inputs`."""
        first, second = _ROLES[self.name]
        return second if index % 2 else first[-linears:]


@dataclass(frozen=True)
class Fused:
    """A layer whose weight holds the rows of several matrices; each becomes a linear `<layer>.<part>`.

    Attributes:
        layer: the module of the block.
        parts: the names of the matrices, in the order of their rows.
        heads: layout of the rows. `none`: one equal part after the other; `stacked`: all heads of q, then those of k, then those of v;
            `grouped`: for each head of k its heads of q, itself, and its head of v.
    """

    layer: str
    parts: tuple[str, ...]
    heads: Literal["none", "stacked", "grouped"] = "none"


@dataclass(frozen=True)
class Architecture:
    """A family of decoders.

    Attributes:
        blocks: path of the list of decoder blocks.
        width: field of the config with the number of channels inside the FFN; where it is empty they are four times the hidden size.
        sublayers: of one block, in the order of computation.
        fused: layers to split.
        experts: module of the block that holds stacked experts.
        untouched: linears of the block that stay unchanged.
        parallel: whether all sublayers read the input of the block; or the config fields of which any can say so.
        scale: field of the config by which the output of a sublayer is multiplied.
        returns: return type of a block.
        residual: whether sublayers add to a stream; a single module such as a projector is treated as one block in which none does.
    """

    blocks: str
    sublayers: tuple[Sublayer, ...]
    width: str = "intermediate_size"
    fused: tuple[Fused, ...] = ()
    experts: str = ""
    untouched: tuple[str, ...] = ()
    parallel: bool | tuple[str, ...] = False
    scale: str = ""
    returns: Literal["tensor", "tuple"] = "tensor"
    residual: bool = True

    def is_parallel(self, config: PreTrainedConfig) -> bool:
        """Return whether all sublayers of a block read its input."""
        if isinstance(self.parallel, bool):
            return self.parallel
        return any(bool(getattr(config.get_text_config(), field)) for field in self.parallel)

    def branch_scale(self, config: PreTrainedConfig) -> float:
        """Return the factor on the output of a sublayer, before it joins the residual stream."""
        return float(getattr(config.get_text_config(), self.scale)) if self.scale else 1.0

    def ffn_width(self, config: PreTrainedConfig) -> int:
        """Return the number of channels inside the FFN of a model of this config (without experts)."""
        config = config.get_text_config()
        return int(getattr(config, self.width, None) or 4 * config.hidden_size)


@dataclass(frozen=True)
class Multimodal:
    """A vision-language model: a decoder with the entry of its own family, and the modules that turn images into its inputs.

    Attributes:
        decoder: path of the decoder.
        vision: path of the vision tower.
        projector: turns the features of the tower into inputs of the decoder; None where it has no linears.
        layer: config field with the tower layers whose output is used, counted like transformers' hidden states; where it is empty, all
            blocks are used.
    """

    decoder: str
    vision: str
    projector: Architecture | None = None
    layer: str = ""

    def with_decoder(self, entry: Architecture) -> Architecture:
        """Return the entry of the whole model from that of its decoder's family, whose paths begin with the base model's name."""
        return replace(entry, blocks=f"{self.decoder}.{entry.blocks.partition('.')[2]}")

    def used_blocks(self, config: PreTrainedConfig, blocks: int) -> int:
        """Return how many blocks of the vision tower have an effect: those after the last layer that is read have none."""
        if not self.layer:
            return blocks
        layers: int | list[int] = getattr(config, self.layer)
        return max(layer % (blocks + 1) for layer in (layers if isinstance(layers, list) else [layers]))


def _expand_pattern(pattern: Mapping[str, str], block: nn.Module) -> Iterator[Group]:
    """Yield the groups of a pattern (linears with their roles), one per expert where it has a `*`, of the linears that the block has."""
    path, star, _ = next(iter(pattern)).partition(".*")
    if not star:
        yield _group(pattern, block)
    elif has_module(block, path):
        for expert in range(len(list(block.get_submodule(path).children()))):
            yield _group({name.replace("*", str(expert)): role for name, role in pattern.items()}, block, expert)


def _group(roles: Mapping[str, str], block: nn.Module, expert: int | None = None) -> Group:
    there = {name: role for name, role in roles.items() if has_module(block, name)}
    return Group(tuple(there), tuple(there.values()), expert)


def has_module(module: nn.Module, path: str) -> bool:
    """Return whether `module` has a submodule at a dotted path."""
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
