"""Factors stage after stage, fitted to the dense model where everything before them is compressed already.

A matrix that is factorized on dense inputs answers the wrong question once the blocks before it are compressed. So every matrix `W` is
first replaced by the least-squares answer to the right one: which linear map of the inputs `x'` that really arrive comes closest to what
the dense model computes, `W x`, for the same tokens? With the difference `d = W x - W x'`,

    W' = W + Cov(d, x') (Cov(x') + damping tr(Cov(x')) / n I)^-1

and it is `W'` that the factorizer decomposes, in its own metric of `x'`. Where a matrix writes to the residual stream (o and down), `d` has
also what the two streams differ by: it makes up for the error of the whole stream. A matrix that stays dense becomes `W'` itself, at no
cost in parameters. Each of the four stages of a block (q, k, v; o; gate, up; down) is measured behind the stages before it, so that with
`whitened`, `afm` and `kronecker` both `B` and `A` are the least-squares optimum given them (reduced-rank regression), and there is nothing
to refit at the end of a block. Our choice after measurements (docs/log.md); that blocks should be fitted to dense outputs on compressed
inputs is the principle of AA-SVD.

Experts of a mixture get other tokens in the compressed model than in the dense one, so nothing is known to fit them to: they are
factorized on the tokens that the dense router sends them, as without anchoring.

Legend: t tokens of a sequence, n inputs, m outputs, k = n or m, h hidden size.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.anatomy import Group
from mgaa.architectures import Stack, stacks_of
from mgaa.budget import Matrix
from mgaa.checkpoint import apply_dense, apply_factors, twin_of
from mgaa.errors import UsageError
from mgaa.factors import factorize, spectra
from mgaa.levels import Chosen, adds_biases
from mgaa.lowrank import Dense, Factors, LowRankLinear
from mgaa.moments import Accumulator, Share
from mgaa.prompts import Prompts
from mgaa.refinement import Outputs, Refinement, check_tunable, refine_, root_of
from mgaa.regression import Missing, MissingSums, regressed
from mgaa.shelf import resident
from mgaa.shortcut import Shortcuts
from mgaa.stages import Seen, Stage, seen_by, stages_of, writes_to_stream
from mgaa.statistics import BlockStatistics, InputStatistics
from mgaa.streaming import Calibration, Measuring, counted


@dataclass(frozen=True)
class Anchoring:
    """How factors are fitted to the dense model.

    Attributes:
        stream: whether o and down also make up for what the residual streams differ by.
        dense: whether matrices that stay dense are fitted, too.
        damping: of the regression, relative to the mean square of an input channel; it pulls `W'` towards `W`.

    Raises:
        UsageError: the damping is not a positive number.
    """

    stream: bool = True
    dense: bool = True
    damping: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.damping < math.inf:
            raise UsageError(f"anchor.damping is {self.damping}, expected a positive number such as 1e-4")


@dataclass(frozen=True, eq=False)
class AnchoredBlock:
    """What one block becomes, by the names of its matrices: factors, and weights that stay dense but are no longer those of the model."""

    factors: dict[str, Factors] = field(default_factory=dict)
    dense: dict[str, Dense] = field(default_factory=dict)

    def put_(self, model: nn.Module) -> None:
        """Into the model, or into a twin of it, in place."""
        apply_factors(model, self.factors)
        apply_dense(model, self.dense)

    def taken_from(self, model: nn.Module) -> "AnchoredBlock":
        """The same matrices as they are in the model, which has been tuned since they were put into it."""
        factors, dense = dict[str, Factors](), dict[str, Dense]()
        for name in self.factors:
            layer = model.get_submodule(name)
            assert isinstance(layer, LowRankLinear)
            factors[name] = layer.factors()
        for name in self.dense:
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            dense[name] = Dense(linear.weight.detach(), None if linear.bias is None else linear.bias.detach())
        return AnchoredBlock(factors, dense)


@dataclass(frozen=True, eq=False)
class Wanted:
    """What is asked of the matrices of a block.

    Attributes:
        matrices: all of the block.
        ranks: by the name of the matrix; `None` stays dense.
        factors: the factorizer and its options.
        gradients: second moments of the output gradients, by the name inside the block; empty where none were measured.
    """

    matrices: Sequence[Matrix]
    ranks: Mapping[str, int | None]
    factors: Chosen
    gradients: Mapping[str, Float[Tensor, "m m"]]


class Anchor:
    """The calibration tokens on their way through two models side by side: the dense one, and a twin that is compressed block by block.

    Args:
        model: the dense model; it stays as it is.
        twin: of the model (`mgaa.checkpoint.twin_of`).
        dense, compressed: the tokens before the same block of the model, and of the twin.
        measuring: how both measure.
        anchoring: how factors are fitted.
        refinement: how the matrices of a block are then tuned together; `None`: not at all.
        remember: whether the outputs of attention are kept for the later passes through a block, which takes three times the memory of
            the hidden states, and half the time.

    Raises:
        UsageError: the model is to be tuned in a dtype that carries no gradients.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        twin: PreTrainedModel,
        dense: Calibration,
        compressed: Calibration,
        measuring: Measuring,
        anchoring: Anchoring,
        refinement: Refinement | None = None,
        *,
        remember: bool = True,
    ) -> None:
        self.model, self.twin, self.dense, self.compressed = model, twin, dense, compressed
        self._measuring, self._anchoring, self._remember = measuring, anchoring, remember
        self._refinement = refinement
        self._stacks: tuple[Stack, Stack] = stacks_of(model)[0], stacks_of(twin)[0]
        self._shortcuts: dict[int, list[Shortcuts]] = {}
        if refinement is not None:
            check_tunable(model.dtype)

    @torch.no_grad()
    def compress(self, index: int, wanted: Wanted) -> AnchoredBlock:
        """Factorize block `index` of the twin, stage after stage; tokens and block stay as they are.

        Raises:
            InputError: an expert that no token reaches.
            NumericalError: an activation, or what is fitted, is not finite (the message names the matrix).
        """
        found, names = AnchoredBlock(), [matrix.name for matrix in wanted.matrices]
        before, arrived = (stack.blocks[index] for stack in self._stacks)
        sublayers = self._stacks[0].entry.sublayers
        self._shortcuts = {index: [Shortcuts(each, sublayers, active=self._remember) for each in (before, arrived)]}
        with resident(before), resident(arrived), _untouched(self.twin, names):
            for stage in stages_of(self._stacks[0].entry, before):
                inside = [matrix for matrix in wanted.matrices if matrix.local in stage.linears]
                measured, kept = self._measured(index, stage)
                part = self._fitted(replace(wanted, matrices=inside), measured)
                part.put_(self.twin)
                self._keep(index, stage, kept)
                found.factors.update(part.factors)
                found.dense.update(part.dense)
            return self._refined_(index, found, wanted)

    def advance(self, index: int) -> None:
        """Send the tokens through block `index` of both models, as they now are."""
        known = self._shortcuts.pop(index, (None, None))
        for calibration, shortcuts in zip((self.compressed, self.dense), reversed(known), strict=True):
            with shortcuts.attached(self._done()) if shortcuts else nullcontext():
                calibration.advance(index, watch=shortcuts)

    def _done(self, stage: Stage | None = None) -> list[str]:
        """The modules of the sublayers before a stage; of all without one."""
        sublayers = self._stacks[0].entry.sublayers
        return [each.module for each in (sublayers if stage is None else sublayers[: sublayers.index(stage.sublayer)])]

    def _keep(self, index: int, stage: Stage, arrived: Mapping[int, Tensor]) -> None:
        """What the sublayer of the twin adds, from what its last linear reads."""
        linear = self._stacks[1].blocks[index].get_submodule(stage.linears[0])
        dense, twin = self._shortcuts[index]
        for batch, x in arrived.items():
            with torch.no_grad():
                twin.keep(stage.sublayer.module, batch, linear(x), dense)

    def _refined_(self, index: int, found: AnchoredBlock, wanted: Wanted) -> AnchoredBlock:
        """What was found, tuned in the twin together."""
        linears = [self.twin.get_submodule(name) for name in (*found.factors, *found.dense)]
        if self._refinement is None or not linears:
            return found
        (stack, twin), shortcuts = self._stacks, self._shortcuts[index]
        last = stages_of(stack.entry, stack.blocks[index])[-1]
        seen = writes_to_stream(last, stack.blocks[index], self.dense.entering(index, 0)[1])
        root = root_of(wanted.gradients.get(last.linears[0]) if seen else None)

        def dense(batch: int) -> Tensor:
            shortcuts[0].enter(batch, Tensor())
            return self.dense.entering(index, batch)[1]()

        outputs = Outputs(
            len(self.compressed.sequences), dense, lambda batch: self.compressed.entering(index, batch)[1](), root
        )
        with shortcuts[0].attached(self._done()):
            refine_(twin.blocks[index], linears, outputs, self._refinement, name=twin.path(index))
        shortcuts[1] = Shortcuts(twin.blocks[index], ())  # what the tuned block adds is not what was kept
        return found.taken_from(self.twin)

    def _measured(
        self, index: int, stage: Stage
    ) -> tuple[dict[str, tuple[InputStatistics, Missing | None]], dict[int, Tensor]]:
        """Of every linear of a stage of the twin: what arrives at it, and what its outputs lack.

        Also what arrives by micro-batch, where the output of the only linear is that of the sublayer, which is kept.
        """
        stack, sequences = self._stacks[0], self.compressed.sequences
        block = stack.blocks[index]
        writes = self._anchoring.stream and writes_to_stream(stage, block, self.dense.entering(index, 0)[1])
        scale = stack.entry.branch_scale(stack.config)
        meters = {
            group: self._meter(group, block, stack.path(index), scale if writes else None) for group in stage.groups
        }
        shortcuts, arrived = self._shortcuts[index], dict[int, Tensor]()
        last = stage.writes and shortcuts[0].has(
            stage.sublayer.module
        )  # of a sublayer of the dense block, which is kept at once
        done = self._done(stage), [*self._done(stage), *([stage.sublayer.module] if last else [])]
        with shortcuts[0].attached(done[1]), shortcuts[1].attached(done[0]):
            for batch, range_ in enumerate(sequences):
                seen = []
                for side, calibration, each in zip(self._stacks, (self.dense, self.compressed), shortcuts, strict=True):
                    each.enter(batch, Tensor())
                    given = (side.entry, side.config, side.blocks[index], *calibration.entering(index, batch))
                    seen.append(seen_by(stage, *given, whole=last and side is stack))
                for group, meter in meters.items():
                    meter.update(range_.start, group, *seen)
                if last and writes and not stage.sublayer.output:
                    arrived[batch] = seen[1].inputs[stage.linears[0]]
        found = dict[str, tuple[InputStatistics, Missing | None]]()
        for group, meter in meters.items():
            inputs, missing = meter.finish()
            for linear in group.linears:
                weight = block.get_parameter(f"{linear}.weight").detach().double()
                found[linear] = inputs, missing if missing is None or writes else missing.at_outputs(weight)
        return found, arrived

    def _meter(self, group: Group, block: nn.Module, path: str, scale: float | None) -> "_Meter":
        minimum = 0.0 if group.expert is None else self._measuring.expert_tokens
        share = Share(sum(map(len, self.compressed.sequences)))
        inputs = Accumulator(f"{path}.{group.linears[0]}", self._measuring.groups, share, minimum=minimum)
        weight: Tensor = block.get_parameter(f"{group.linears[0]}.weight").detach()
        writing = None if scale is None else (weight.to(torch.promote_types(weight.dtype, torch.float32)), scale)
        return _Meter(inputs, None if group.expert is not None else MissingSums(), writing)

    def _fitted(self, wanted: Wanted, measured: Mapping[str, tuple[InputStatistics, Missing | None]]) -> AnchoredBlock:
        """The matrices of one stage."""
        (name, options), damping, found = wanted.factors, self._anchoring.damping, AnchoredBlock()
        adds, given = adds_biases(wanted.factors), dict[str, tuple[Tensor, Tensor | None]]()
        for matrix in wanted.matrices:
            linear = self.twin.get_submodule(matrix.name)
            assert isinstance(linear, nn.Linear)
            bias = None if linear.bias is None else linear.bias.detach().double()
            centred = bias is not None or (adds and wanted.ranks[matrix.name] is not None)
            arrived, missing = measured[matrix.local]
            weight, lost = regressed(
                linear.weight.detach(), missing, arrived, damping=damping, centred=centred, name=matrix.name
            )
            given[matrix.local] = weight, lost if bias is None or lost is None else bias + lost
        low = [matrix for matrix in wanted.matrices if wanted.ranks[matrix.name] is not None]
        statistics = BlockStatistics(
            {}, {}, {x: measured[x][0] for x in given}, {x: x for x in given}, gradients=dict(wanted.gradients)
        )
        bases = spectra({matrix.local: given[matrix.local][0] for matrix in low}, statistics, name, **options)
        for matrix in wanted.matrices:
            weight, shift = given[matrix.local]
            if (rank := wanted.ranks[matrix.name]) is not None:
                basis = bases.pop(matrix.local)
                found.factors[matrix.name] = factorize(weight, shift, basis, rank, dtype=self.twin.dtype)
            elif self._anchoring.dense and measured[matrix.local][1] is not None:
                found.dense[matrix.name] = Dense(weight, shift)
        return found


def anchored(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    matrices: Sequence[Matrix],
    ranks: Mapping[str, int | None],
    factors: Chosen,
    gradients: Sequence[Mapping[str, Float[Tensor, "m m"]]],
    measuring: Measuring,
    anchoring: Anchoring,
    refinement: Refinement | None = None,
) -> Iterator[AnchoredBlock]:
    """What every block of a model becomes at these ranks, in order; the model stays as it is.

    Args:
        model: dense, taken apart, in eval mode.
        tokens: calibration sequences.
        matrices: all of the decoder.
        ranks: by the name of the matrix; `None` stays dense.
        factors: the factorizer and its options.
        gradients: by block, those of its linears; empty for factorizers that need none.
        measuring, anchoring, refinement: how.

    Raises:
        UsageError, InputError, NumericalError: as `Anchor.compress`.
    """
    twin = twin_of(model)
    dense, compressed = (Calibration(each, tokens, measuring) for each in (model, twin))
    anchor = Anchor(model, twin, dense, compressed, measuring, anchoring, refinement)
    for index in counted(anchor.compressed):
        inside = [matrix for matrix in matrices if matrix.block == index]
        block = anchor.compress(index, Wanted(inside, ranks, factors, gradients[index] if gradients else {}))
        yield block
        block.put_(twin)
        anchor.advance(index)


@contextmanager
def _untouched(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """What stands under these names inside the context does not stay there."""
    linears = {name: model.get_submodule(name) for name in names}
    try:
        yield
    finally:
        for name, linear in linears.items():
            model.set_submodule(name, linear)


@dataclass(frozen=True, eq=False)
class _Meter:
    """What arrives at the linears of one input, and what is missing there.

    Attributes:
        inputs: that arrive.
        missing: `None` for an expert, whose inputs are those of the dense model.
        writing: the weight of the only linear, and the scale of its branch, where it writes to the residual stream.
    """

    inputs: Accumulator
    missing: MissingSums | None
    writing: tuple[Tensor, float] | None

    def update(self, first: int, group: Group, dense: Seen, arrived: Seen) -> None:
        """Add a micro-batch, whose first sequence is number `first`."""
        sequences = (dense if self.missing is None else arrived).by_sequence(group)
        for offset, x in enumerate(sequences):
            self.inputs.update(first + offset, x)
        if self.missing is None:
            return
        for offset, (there, x) in enumerate(zip(dense.by_sequence(group), sequences, strict=True)):
            lacks = there - x
            if self.writing is not None:
                weight, scale = self.writing
                streams = (dense.stream[offset] - arrived.stream[offset]).to(weight.dtype)
                lacks = lacks.to(weight.dtype) @ weight.T + streams / scale
            self.missing.update(lacks, x)

    def finish(self) -> tuple[InputStatistics, Missing | None]:
        """Statistics of the inputs, and what is missing, at the outputs where the linear writes to the residual stream."""
        return self.inputs.finish(), None if self.missing is None else self.missing.finish()
