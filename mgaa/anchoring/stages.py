"""The stages of a decoder block: what has to be computed before a matrix sees its input.

A sublayer has two: the linears that read its norm (q, k, v; gate, up), and those that read what these have made (o; down). The matrices
of one stage do not depend on each other, so each stage can be measured where all stages before it are compressed.

Legend: s sequences of a micro-batch, t tokens of a sequence, h hidden size, n channels of an input.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mgaa.blocks.blockwise import first_of
from mgaa.models.architecture_schema import Architecture, Group, Sublayer
from mgaa.models.expert_routing import Rows

_SECOND = ("o", "down")
"""Roles of linears that read what the others of their sublayer have made."""


@dataclass(frozen=True)
class Stage:
    """Linears of one sublayer, by the inputs that they share; all of them read what the other stage has made, or none does."""

    sublayer: Sublayer
    groups: tuple[Group, ...]

    @property
    def writes(self) -> bool:
        """Whether it is the second stage of its sublayer, behind which that is done."""
        return self.groups[0].roles[0] in _SECOND

    @property
    def linears(self) -> list[str]:
        """Their names inside the block."""
        return [linear for group in self.groups for linear in group.linears]


def stages_of(entry: Architecture, block: nn.Module) -> list[Stage]:
    """The stages of a block, in the order of computation."""
    found = []
    for sublayer in entry.sublayers:
        groups = sublayer.groups(block)
        for second in (False, True):
            here = tuple(group for group in groups if (group.roles[0] in _SECOND) == second)
            found += [Stage(sublayer, here)] if here else []
    return found


@dataclass
class Seen:
    """What one stage of a block was given with a micro-batch.

    Attributes:
        stream: the residual stream that the sublayer of the stage adds to.
        rows: of every sequence.
        inputs: by the first linear of each group; of an expert, the rows of all its tokens.
    """

    stream: Float[Tensor, "s t h"]
    rows: Rows
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def by_sequence(self, group: Group) -> Sequence[Float[Tensor, "t n"]]:
        """The input of a group, sequence by sequence; none of an expert that no token of the micro-batch was sent to."""
        x = self.inputs.get(group.linears[0])
        return [] if x is None else self.rows.of(x, group.expert)


def seen_by(
    stage: Stage,
    entry: Architecture,
    config: PreTrainedConfig,
    block: nn.Module,
    before: Float[Tensor, "s t h"],
    run: Callable[[], Any],
    *,
    whole: bool = False,
) -> Seen:
    """What a stage is given while `run` sends the micro-batch `before` through the block.

    The pass ends where the stage has its input; with `whole`, where the module of its sublayer has its output.
    """
    seen, scale = Seen(before, Rows(entry, block)), entry.branch_scale(config)
    seen.rows.enter(len(before))

    def adds(_: nn.Module, __: Any, output: Any) -> None:
        added = first_of(output).reshape(before.shape)
        seen.stream = seen.stream + (added if scale == 1.0 else added * scale)

    with ExitStack() as stack, suppress(_Reached):
        stack.enter_context(seen.rows.watched())
        for sublayer in entry.sublayers[: entry.sublayers.index(stage.sublayer)]:
            stack.enter_context(_output_of(sublayer, block).register_forward_hook(adds))
        if whole:
            stack.enter_context(block.get_submodule(stage.sublayer.module).register_forward_hook(_stop))
        for group in stage.groups:
            hook = _reads(seen, group, last=len(stage.groups) == 1 and not whole)
            stack.enter_context(block.get_submodule(group.linears[0]).register_forward_pre_hook(hook))
        run()
    return seen


def writes_to_stream(stage: Stage, block: nn.Module, run: Callable[[], Any]) -> bool:
    """Whether the output of the only linear of a stage is what its sublayer adds to the stream, as one micro-batch shows.

    Not so where a norm, a gate or a router is between them.
    """
    (group, *others), made = stage.groups, dict[str, Tensor]()
    if others or len(group.linears) > 1 or not stage.writes:
        return False

    def keep(key: str) -> Callable[..., None]:
        return lambda _, __, output: made.update({key: first_of(output)})

    linear, sublayer = block.get_submodule(group.linears[0]), _output_of(stage.sublayer, block)
    with linear.register_forward_hook(keep("linear")), sublayer.register_forward_hook(keep("sublayer")):
        run()
    return bool(made["linear"].any()) and torch.equal(made["linear"].flatten(), made["sublayer"].flatten())


class _Reached(Exception):  # noqa: N818 (no error)
    """The pass has come as far as it was to go."""


def _stop(*_: Any) -> None:
    raise _Reached


def _reads(seen: Seen, group: Group, *, last: bool) -> Callable[..., None]:
    def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.inputs[group.linears[0]] = given[0]
        if last:
            raise _Reached

    return hook


def _output_of(sublayer: Sublayer, block: nn.Module) -> nn.Module:
    return block.get_submodule(sublayer.output or sublayer.module)
