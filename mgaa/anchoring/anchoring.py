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

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.anchoring.fitting import AnchoredBlock, Anchoring, Meter, Wanted, fitted
from mgaa.anchoring.refinement import Outputs, Refinement, check_tunable, refine_, root_of
from mgaa.anchoring.stages import Stage, seen_by, stages_of, writes_to_stream
from mgaa.anchoring.sublayer_cache import Shortcuts
from mgaa.blocks.offload import resident
from mgaa.budget import Matrix
from mgaa.checkpoints.save import twin_of
from mgaa.decomposition.regression import Missing
from mgaa.inputs.prompts import Prompts
from mgaa.levels import Chosen
from mgaa.models.architectures import Stack, stacks_of
from mgaa.statistics.calibration import Calibration, Measuring, counted
from mgaa.statistics.statistics import InputStatistics


class Anchor:
    """The calibration tokens on their way through two models side by side: the dense one, and a twin that is compressed block by block.

    Args:
        model: the dense model; it stays as it is.
        twin: of the model (`mgaa.checkpoints.save.twin_of`).
        dense, compressed: the tokens before the same block of the model, and of the twin.
        measuring: how both measure.
        anchoring: how factors are fitted.
        refinement: how the matrices of a block are then tuned together; `None`: not at all.
        remember: whether the outputs of sublayers are kept for the later passes through a block, which takes four times the memory of
            the hidden states, and once that of what `down` reads, and half the time.

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
                part = fitted(self.twin, replace(wanted, matrices=inside), measured, self._anchoring)
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

    def _writes_to_stream(self, index: int, stage: Stage) -> bool:
        return writes_to_stream(stage, self._stacks[0].blocks[index], self.dense.entering(index, 0)[1])

    def _done(self, stage: Stage | None = None) -> list[str]:
        """The modules of the sublayers before a stage; of all without one."""
        sublayers = self._stacks[0].entry.sublayers
        return [each.module for each in (sublayers if stage is None else sublayers[: sublayers.index(stage.sublayer)])]

    def _keep(self, index: int, stage: Stage, arrived: dict[int, Tensor]) -> None:
        """What the sublayer of the twin adds, from what its last linear reads, which is used up."""
        linear = self._stacks[1].blocks[index].get_submodule(stage.linears[0])
        dense, twin = self._shortcuts[index]
        while arrived:
            batch, x = arrived.popitem()
            twin.keep(stage.sublayer.module, batch, linear(x), dense)

    def _refined_(self, index: int, found: AnchoredBlock, wanted: Wanted) -> AnchoredBlock:
        """What was found, tuned in the twin together."""
        linears = [self.twin.get_submodule(name) for name in (*found.factors, *found.dense)]
        if self._refinement is None or not linears:
            return found
        (stack, twin), shortcuts = self._stacks, self._shortcuts[index]
        last = stages_of(stack.entry, stack.blocks[index])[-1]
        root = root_of(wanted.gradients.get(last.linears[0]) if self._writes_to_stream(index, last) else None)

        def dense(batch: int) -> Tensor:
            shortcuts[0].enter(batch, Tensor())
            return self.dense.entering(index, batch)[1]()

        outputs = Outputs(
            len(self.compressed.sequences), dense, lambda batch: self.compressed.entering(index, batch)[1](), root
        )
        shortcuts[1] = Shortcuts(twin.blocks[index], ())  # what the tuned block adds will not be what was kept
        with shortcuts[0].attached(self._done()):
            refine_(twin.blocks[index], linears, outputs, self._refinement, name=twin.path(index))
        return found.taken_from(self.twin)

    def _measured(
        self, index: int, stage: Stage
    ) -> tuple[dict[str, tuple[InputStatistics, Missing | None]], dict[int, Tensor]]:
        """Of every linear of a stage of the twin: what arrives at it, and what its outputs lack.

        Also what arrives by micro-batch, where the output of the only linear is that of the sublayer, which is kept.
        """
        stack, sequences = self._stacks[0], self.compressed.sequences
        block = stack.blocks[index]
        writes = self._anchoring.stream and self._writes_to_stream(index, stage)
        scale = stack.entry.branch_scale(stack.config)
        meters = {
            group: Meter.of(
                group, block, stack.path(index), self._measuring, sum(map(len, sequences)), scale if writes else None
            )
            for group in stage.groups
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
            met = meter.finish()
            if met is None:
                continue
            inputs, missing = met
            for linear in group.linears:
                weight = block.get_parameter(f"{linear}.weight").detach().double()
                found[linear] = inputs, missing if missing is None or writes else missing.at_outputs(weight)
        return found, arrived


def anchored(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    matrices: Sequence[Matrix],
    ranks: Mapping[str, int | None],
    factors: Chosen,
    gradients: Mapping[int, Mapping[str, Float[Tensor, "m m"]]],
    measuring: Measuring,
    anchoring: Anchoring,
    refinement: Refinement | None = None,
    *,
    remember: bool = True,
) -> Iterator[AnchoredBlock]:
    """What every block of a model becomes at these ranks, in order; the model stays as it is.

    Args:
        model: dense, taken apart, in eval mode.
        tokens: calibration sequences.
        matrices: all of the decoder.
        ranks: by the name of the matrix; `None` stays dense.
        factors: the factorizer and its options.
        gradients: by block, those of its linears; none for factorizers that need none.
        measuring, anchoring, refinement: how.
        remember: as in `Anchor`.

    Raises:
        UsageError, InputError, NumericalError: as `Anchor.compress`.
    """
    twin = twin_of(model)
    dense, compressed = (Calibration(each, tokens, measuring) for each in (model, twin))
    anchor = Anchor(model, twin, dense, compressed, measuring, anchoring, refinement, remember=remember)
    for index in counted(anchor.compressed):
        inside = [matrix for matrix in matrices if matrix.block == index]
        block = anchor.compress(index, Wanted(inside, ranks, factors, gradients.get(index, {})))
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
