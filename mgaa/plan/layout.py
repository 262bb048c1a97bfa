"""Shapes of a model, which is built on the meta device, where tensors have shapes and no content.

Legend: m outputs, n inputs, d width of the measured side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.anchoring.stages import BlockStage, stages_of
from mgaa.budget import Matrix
from mgaa.models.architectures import architecture_of, decoder_blocks, matrices_of
from mgaa.statistics.hooks import is_narrow


@dataclass(frozen=True)
class Moment:
    """A covariance of calibration: of width `d`, of an input of `n` channels; `rows` of the weight on the output side."""

    d: int
    n: int
    rows: int


@dataclass(frozen=True)
class Input:
    """One input of a block, and the linears that read it, in the stages of anchoring (`mgaa.anchoring.stages`).

    Attributes:
        n: channels of the input.
        outputs: of each linear.
        writes: whether the only linear writes directly to the residual stream.
        expert: whether the linears belong to an expert, which has no residual.
        share: of the tokens, on average.
    """

    n: int
    outputs: tuple[int, ...]
    writes: bool
    expert: bool
    share: float


@dataclass(frozen=True)
class Block:
    """One decoder block.

    Attributes:
        weights: bytes of its tensors.
        parameters: of its linears.
        matrices: its weight matrices.
        moments: covariances of calibration.
        stages: the inputs that are measured together where the block is anchored.
        widest: channels of the widest activation inside it.
    """

    weights: int
    parameters: int
    matrices: tuple[Matrix, ...]
    moments: tuple[Moment, ...]
    stages: tuple[tuple[Input, ...], ...]
    widest: int


@dataclass(frozen=True)
class Layout:
    """The shapes of a model.

    Attributes:
        blocks: of the decoder.
        rest: bytes of everything else.
        head: parameters of the head.
        hidden, vocabulary: widths.
        itemsize: bytes of a weight.
    """

    blocks: tuple[Block, ...]
    rest: int
    head: int
    hidden: int
    vocabulary: int
    itemsize: int

    @property
    def weights(self) -> int:
        """Bytes of the model in memory."""
        return self.rest + sum(block.weights for block in self.blocks)

    @property
    def widest_written(self) -> int:
        """Channels of the widest input of a linear that writes to the residual stream.

        It is held until that linear is fitted (`mgaa.anchoring.sublayer_cache`).
        """
        return max(
            (group.n for block in self.blocks for stage in block.stages for group in stage if group.writes), default=0
        )

    @property
    def largest(self) -> int:
        """Bytes of the largest block."""
        return max(block.weights for block in self.blocks)


def layout_of(model: PreTrainedModel) -> Layout:
    """Compute the shapes of a split model, or of its meta copy (`mgaa.checkpoints.meta_model`).

    Raises:
        InputError: the architecture has no entry, or a block has a linear that the entry does not name.
    """
    matrices = matrices_of(model)
    blocks = decoder_blocks(model)
    inside = {id(tensor) for tensor in (*blocks.parameters(), *blocks.buffers())}
    rest = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in inside}
    head = model.get_output_embeddings()
    return Layout(
        blocks=tuple(_block(model, index, [m for m in matrices if m.block == index]) for index in range(len(blocks))),
        rest=sum(rest.values()),
        head=0 if head is None else sum(parameter.numel() for parameter in head.parameters()),
        hidden=model.config.get_text_config().hidden_size,
        vocabulary=model.get_input_embeddings().num_embeddings,
        itemsize=model.dtype.itemsize,
    )


def _block(model: PreTrainedModel, index: int, matrices: Sequence[Matrix]) -> Block:
    block = decoder_blocks(model)[index]
    return Block(
        weights=sum(tensor.nbytes for tensor in (*block.parameters(), *block.buffers())),
        parameters=sum(matrix.parameters for matrix in matrices),
        matrices=tuple(matrices),
        moments=tuple(_moments(model, block)),
        stages=tuple(tuple(_inputs(model, block, stage)) for stage in stages_of(architecture_of(model.config), block)),
        widest=max(max(matrix.m, matrix.n) for matrix in matrices),
    )


def _moments(model: PreTrainedModel, block: nn.Module) -> Iterator[Moment]:
    for sublayer in architecture_of(model.config).sublayers:
        for group in sublayer.groups(block):
            weights: list[Tensor] = [block.get_submodule(name).weight for name in group.linears]  # type: ignore[misc]
            shapes = [tuple(weight.shape) for weight in weights]
            if is_narrow(shapes):
                yield from (Moment(m, n, m) for m, n in shapes)
            else:
                yield Moment(shapes[0][1], shapes[0][1], 0)


def _inputs(model: PreTrainedModel, block: nn.Module, stage: BlockStage) -> Iterator[Input]:
    config = model.config.get_text_config()
    experts = {group.expert for group in stage.groups if group.expert is not None}
    routed = getattr(config, "num_experts_per_tok", None) or len(experts)
    for group in stage.groups:
        weights: list[Tensor] = [block.get_submodule(name).weight for name in group.linears]  # type: ignore[misc]
        yield Input(
            weights[0].shape[1],
            tuple(weight.shape[0] for weight in weights),
            writes=stage.writes and len(stage.linears) == 1 and not stage.sublayer.output,
            expert=group.expert is not None,
            share=1.0 if group.expert is None else min(1.0, routed / len(experts)),
        )
