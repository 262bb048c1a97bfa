"""Stages of a decoder block: the order in which the inputs of its matrices are computed.

A sublayer has two: the linears that read its norm (q, k, v; gate, up), and those that read the results of the first (o; down). The matrices
of one stage do not depend on each other, so each stage can be measured with all stages before it compressed.

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

from mgaa.blocks.blockwise import hidden_states_of
from mgaa.models.architecture_schema import Architecture, Group, Sublayer
from mgaa.models.expert_routing import RoutedRows

_SECOND = ("o", "down")
"""Roles of linears that read what the other linears of their sublayer compute."""


@dataclass(frozen=True)
class BlockStage:
    """Linears of one sublayer, grouped by shared input: either all of its first stage, or all of its second."""

    sublayer: Sublayer
    groups: tuple[Group, ...]

    @property
    def writes(self) -> bool:
        """True for the second stage of its sublayer, which completes the sublayer."""
        return self.groups[0].roles[0] in _SECOND

    @property
    def linears(self) -> list[str]:
        """Names of the linears inside the block."""
        return [linear for group in self.groups for linear in group.linears]


def stages_of(entry: Architecture, block: nn.Module) -> list[BlockStage]:
    """Split a block into its stages, in the order of computation."""
    stages = []
    for sublayer in entry.sublayers:
        groups = sublayer.groups(block)
        for second in (False, True):
            here = tuple(group for group in groups if (group.roles[0] in _SECOND) == second)
            stages += [BlockStage(sublayer, here)] if here else []
    return stages


@dataclass
class StageInputs:
    """Inputs of one stage of a block for a micro-batch.

    Attributes:
        stream: the residual stream to which the stage's sublayer adds.
        rows: the routed rows of every sequence.
        inputs: by the first linear of each group; for an expert, the rows of all its tokens.
    """

    stream: Float[Tensor, "s t h"]
    rows: RoutedRows
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def by_sequence(self, group: Group) -> Sequence[Float[Tensor, "t n"]]:
        """Split the input of a group by sequence; empty for an expert that received no token of the micro-batch."""
        x = self.inputs.get(group.linears[0])
        return [] if x is None else self.rows.of(x, group.expert)


def capture_inputs(
    stage: BlockStage,
    entry: Architecture,
    config: PreTrainedConfig,
    block: nn.Module,
    before: Float[Tensor, "s t h"],
    run: Callable[[], Any],
    *,
    whole: bool = False,
) -> StageInputs:
    """Capture the inputs of a stage while `run` sends the micro-batch `before` through the block.

    The pass ends once the stage has its input; with `whole`, once the module of its sublayer has its output.
    """
    seen, scale = StageInputs(before, RoutedRows(entry, block)), entry.branch_scale(config)
    seen.rows.enter(len(before))

    def adds(_: nn.Module, __: Any, output: Any) -> None:
        added = hidden_states_of(output).reshape(before.shape)
        seen.stream = seen.stream + (added if scale == 1.0 else added * scale)

    with ExitStack() as stack, suppress(_StopForward):
        stack.enter_context(seen.rows.watch())
        for sublayer in entry.sublayers[: entry.sublayers.index(stage.sublayer)]:
            stack.enter_context(_output_of(sublayer, block).register_forward_hook(adds))
        if whole:
            stack.enter_context(block.get_submodule(stage.sublayer.module).register_forward_hook(_stop))
        for group in stage.groups:
            hook = _reads(seen, group, last=len(stage.groups) == 1 and not whole)
            stack.enter_context(block.get_submodule(group.linears[0]).register_forward_pre_hook(hook))
        run()
    return seen


def writes_to_stream(stage: BlockStage, block: nn.Module, run: Callable[[], Any]) -> bool:
    """Return whether the only linear of a stage writes directly to the residual stream, by a trial on one micro-batch.

    It does not where a norm, a gate or a router follows.
    """
    (group, *others), made = stage.groups, dict[str, Tensor]()
    if others or len(group.linears) > 1 or not stage.writes:
        return False

    def keep(key: str) -> Callable[..., None]:
        return lambda _, __, output: made.update({key: hidden_states_of(output)})

    linear, sublayer = block.get_submodule(group.linears[0]), _output_of(stage.sublayer, block)
    with linear.register_forward_hook(keep("linear")), sublayer.register_forward_hook(keep("sublayer")):
        run()
    return bool(made["linear"].any()) and torch.equal(made["linear"].flatten(), made["sublayer"].flatten())


class _StopForward(Exception):  # noqa: N818 (no error)
    """The pass has computed what was required."""


def _stop(*_: Any) -> None:
    raise _StopForward


def _reads(seen: StageInputs, group: Group, *, last: bool) -> Callable[..., None]:
    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.inputs[group.linears[0]] = arguments[0]
        if last:
            raise _StopForward

    return hook


def _output_of(sublayer: Sublayer, block: nn.Module) -> nn.Module:
    return block.get_submodule(sublayer.output or sublayer.module)
