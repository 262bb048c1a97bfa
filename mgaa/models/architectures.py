"""Locations of the compressible linears of a model, by its entry (`mgaa.models.entries`).

The entry of a vision-language model (`MULTIMODAL`) gives the places of its decoder, which has the entry of its own family, of its vision
tower (`VISION`) and of the projector between them. The decoder is compressed, the others on request: each is a `Stack` of blocks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mgaa.budget import Matrix
from mgaa.errors import InputError, UsageError
from mgaa.models.architecture_schema import Architecture, has_module
from mgaa.models.entries import ARCHITECTURES, MULTIMODAL, VISION

PARTS = ("decoder", "vision", "projector")
"""Parts of a model that can be compressed."""
DECODER = PARTS[:1]


@dataclass(frozen=True)
class Stack:
    """The blocks of one part of a model.

    Attributes:
        part: one of `PARTS`.
        entry: with paths from the model.
        config: of the part.
        first: number of its first block among the blocks of all compressed parts.
        blocks: only those that have an effect.
    """

    part: str
    entry: Architecture
    config: PreTrainedConfig
    first: int
    blocks: tuple[nn.Module, ...]

    def path(self, index: int) -> str:
        """Return the path of a block in the model, by its index in the stack."""
        return f"{self.entry.blocks}.{index}" if self.entry.residual else self.entry.blocks


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """Return the entry of a model with this config; for a vision-language model, that of its decoder.

    Raises:
        InputError: it has no entry.
    """
    multimodal = MULTIMODAL.get(config.model_type)
    family: str = config.model_type if multimodal is None else config.get_text_config().model_type
    if family not in ARCHITECTURES:
        known = ", ".join(sorted({*ARCHITECTURES, *MULTIMODAL}))
        raise InputError(
            f"the architecture {family!r} has no entry; known are {known}. "
            "To add it, write its block list and sublayers into mgaa/models/entries.py"
        )
    return ARCHITECTURES[family] if multimodal is None else multimodal.with_decoder(ARCHITECTURES[family])


def has_entry(config: PreTrainedConfig) -> bool:
    """Return whether a model with this config has an entry."""
    family = config.get_text_config().model_type if is_multimodal(config) else config.model_type
    return family in ARCHITECTURES


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Return whether a model with this config is multimodal, by an entry in `MULTIMODAL`."""
    return config.model_type in MULTIMODAL


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the decoder blocks of a transformers model, with or without a head, in order."""
    blocks = model.get_submodule(path_of_blocks(model))
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def path_of_blocks(model: PreTrainedModel) -> str:
    """Return the path of the decoder blocks in a transformers model; without a head it is shorter than that of the entry."""
    path = architecture_of(model.config).blocks
    return path if has_module(model, path) else path.removeprefix(f"{model.base_model_prefix}.")


def stacks_of(model: PreTrainedModel, parts: Sequence[str] = DECODER) -> list[Stack]:
    """Return the blocks of these parts of a model, the decoder's first.

    Raises:
        UsageError: the model has no such part.
        InputError: the decoder or the vision tower has no entry.
    """
    stacks: list[Stack] = []
    for part in PARTS:
        if part in parts:
            entry, config, blocks = _part(model, part)
            stacks.append(Stack(part, entry, config, sum(len(stack.blocks) for stack in stacks), tuple(blocks)))
    return stacks


def stack_at(model: PreTrainedModel, block: int, parts: Sequence[str] = DECODER) -> Stack:
    """Return the stack that contains the block of that number among those of all parts."""
    return next(stack for stack in reversed(stacks_of(model, parts)) if stack.first <= block)


def _part(model: PreTrainedModel, part: str) -> tuple[Architecture, PreTrainedConfig, Sequence[nn.Module]]:
    config = model.config
    if part == "decoder":
        return architecture_of(config), config, list(decoder_blocks(model))
    if not is_multimodal(config):
        raise UsageError(
            f"a {config.model_type} has no {part}: it is not multimodal; compress its decoder alone (backbone.parts)"
        )
    multimodal = MULTIMODAL[config.model_type]
    if part == "projector":
        if multimodal.projector is None:
            raise UsageError(
                f"the projector of a {config.model_type} has no linears to compress: leave `projector` out of backbone.parts"
            )
        return multimodal.projector, config, [model.get_submodule(multimodal.projector.blocks)]
    tower: str = config.vision_config.model_type
    if tower not in VISION:
        raise InputError(
            f"the vision tower {tower!r} has no entry; known are {', '.join(VISION)}. Leave `vision` out of backbone.parts, or write its "
            "blocks into mgaa/models/entries.py"
        )
    entry = replace(VISION[tower], blocks=f"{multimodal.vision}.{VISION[tower].blocks}")
    blocks = list(model.get_submodule(entry.blocks).children())
    return entry, config.vision_config, blocks[: multimodal.used_blocks(config, len(blocks))]


def parts_with(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Return the parts of a model that contain modules of these names."""
    multimodal = MULTIMODAL.get(model.config.model_type)
    if multimodal is None:
        return [*DECODER]
    places = {"decoder": multimodal.decoder, "vision": multimodal.vision}
    places |= {} if multimodal.projector is None else {"projector": multimodal.projector.blocks}
    paths = [*names]
    return [
        part for part, place in places.items() if part in DECODER or any(name.startswith(f"{place}.") for name in paths)
    ]


def matrices_of(model: PreTrainedModel, parts: Sequence[str] = DECODER) -> list[Matrix]:
    """List every compressible weight matrix of a split model (`mgaa.models.fused.unfuse_`): block by block, in the order of the entry.

    Args:
        parts: parts to compress, some of `PARTS`.

    Raises:
        UsageError: the model has no such part.
        InputError: the architecture has no entry, or a block has a linear that the entry does not name.
    """
    return [
        matrix
        for stack in stacks_of(model, parts)
        for index, block in enumerate(stack.blocks)
        for matrix in _matrices(stack, index, block, model.config.model_type)
    ]


def _matrices(stack: Stack, index: int, block: nn.Module, model_type: str) -> Iterator[Matrix]:
    entry, path, number = stack.entry, stack.path(index), stack.first + index
    if (
        entry.experts
        and has_module(block, entry.experts)
        and not isinstance(block.get_submodule(entry.experts), nn.ModuleList)
    ):
        raise InputError(f"{path}.{entry.experts} is stacked: split the model first (mgaa.models.fused.unfuse_)")
    named = set(entry.untouched)
    for sublayer in entry.sublayers:
        groups = sublayer.groups(block)
        for local, role in ((x, role) for group in groups for x, role in zip(group.linears, group.roles, strict=True)):
            named.add(local)
            linear = block.get_submodule(local)
            if not isinstance(linear, nn.Linear):
                raise InputError(
                    f"{path}.{local} is a {type(linear).__name__}, expected nn.Linear: "
                    "start from the dense backbone, not from a compressed or quantised one"
                )
            yield Matrix(
                name=f"{path}.{local}",
                local=local,
                block=number,
                sublayer=f"{number}.{sublayer.name}",
                m=linear.out_features,
                n=linear.in_features,
                bias=linear.bias is not None,
                role=role,
            )
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear) and name not in named:
            raise InputError(
                f"{path}.{name} is a linear that the entry of {model_type!r} does not name: split the model first "
                "(mgaa.models.fused.unfuse_), or add the linear to the entry in mgaa/models/entries.py"
            )
