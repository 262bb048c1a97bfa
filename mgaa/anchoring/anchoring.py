"""Factors fitted to the dense model stage by stage, with everything before each stage compressed already.

A matrix that is factorized on dense inputs solves the wrong problem once the blocks before it are compressed. So every matrix `W` is first
replaced by the least-squares solution of the right one: the linear map of the inputs `x'` of the compressed model that comes closest to
what the dense model computes, `W x`, for the same tokens. With the difference `d = W x - W x'`,

    W' = W + Cov(d, x') (Cov(x') + damping tr(Cov(x')) / n I)^-1

and it is `W'` that the factorizer decomposes, in its own metric of `x'`. Where a matrix writes to the residual stream (o and down), `d`
also contains the difference of the two streams, so the matrix compensates the error of the whole stream. A matrix that stays dense becomes
`W'` itself, at no cost in parameters. Each of the four stages of a block (q, k, v; o; gate, up; down) is measured with the stages before it
compressed, so with `whitened`, `afm` and `kronecker` both `B` and `A` are the least-squares optimum given them (reduced-rank regression),
and nothing is left to refit at the end of a block. Our choice after measurements (docs/log.md); the principle that blocks should be fitted
to dense outputs on compressed inputs is that of AA-SVD.

Experts of a mixture receive other tokens in the compressed model than in the dense one, so there is nothing to fit them to: they are
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

from mgaa.anchoring.fitting import AnchoredBlock, Anchoring, FitRequest, ResidualMeter, fit_stage
from mgaa.anchoring.refinement import Outputs, Refinement, check_tunable, refine_, root_of
from mgaa.anchoring.stages import BlockStage, capture_inputs, stages_of, writes_to_stream
from mgaa.anchoring.sublayer_cache import SublayerCache
from mgaa.blocks.offload import load_block
from mgaa.blocks.products import float32_products
from mgaa.budget import Matrix
from mgaa.checkpoints.save import twin_of
from mgaa.decomposition.regression import ResidualMoments
from mgaa.inputs.prompts import Prompts
from mgaa.levels import Chosen
from mgaa.models.architectures import Stack, stacks_of
from mgaa.statistics.calibration import Calibration, CalibrationSettings, remaining_blocks
from mgaa.statistics.statistics import InputStatistics


class Anchor:
    """Calibration tokens on their way through two models in parallel: the dense one, and a twin that is compressed block by block.

    Args:
        model: the dense model; it stays unchanged.
        twin: of the model (`mgaa.checkpoints.save.twin_of`).
        dense, compressed: the tokens at the input of the same block, in the model and in the twin.
        measuring: calibration settings of both.
        anchoring: settings of the fit.
        refinement: settings of the joint tuning of a block's matrices; `None` for no tuning.
        remember: whether to cache the outputs of sublayers for later passes through a block. This takes four times the memory of the hidden
            states, plus once that of the inputs of `down`, and halves the time.

    Raises:
        UsageError: the model is to be tuned in a dtype without usable gradients.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        twin: PreTrainedModel,
        dense: Calibration,
        compressed: Calibration,
        measuring: CalibrationSettings,
        anchoring: Anchoring,
        refinement: Refinement | None = None,
        *,
        remember: bool = True,
    ) -> None:
        self.model, self.twin, self.dense, self.compressed = model, twin, dense, compressed
        self._measuring, self._anchoring, self._remember = measuring, anchoring, remember
        self._refinement = refinement
        self._stacks: tuple[Stack, Stack] = stacks_of(model)[0], stacks_of(twin)[0]
        self._caches: dict[int, list[SublayerCache]] = {}
        if refinement is not None:
            check_tunable(model.dtype)

    @torch.no_grad()
    def compress(self, index: int, request: FitRequest) -> AnchoredBlock:
        """Factorize block `index` of the twin, stage by stage; tokens and block stay unchanged.

        Raises:
            InputError: no token reaches an expert.
            NumericalError: an activation or a fitted matrix is not finite (the message names the matrix).
        """
        fitted, names = AnchoredBlock(), [matrix.name for matrix in request.matrices]
        before, arrived = (stack.blocks[index] for stack in self._stacks)
        sublayers = self._stacks[0].entry.sublayers
        self._caches = {index: [SublayerCache(block, sublayers, active=self._remember) for block in (before, arrived)]}
        with load_block(before), load_block(arrived), _restore_modules(self.twin, names):
            for stage in stages_of(self._stacks[0].entry, before):
                inside = [matrix for matrix in request.matrices if matrix.local in stage.linears]
                measured, kept = self._measure_stage(index, stage)
                part = fit_stage(self.twin, replace(request, matrices=inside), measured, self._anchoring)
                part.put_(self.twin)
                self._keep(index, stage, kept)
                fitted.factors.update(part.factors)
                fitted.dense.update(part.dense)
            return self._refine_(index, fitted, request)

    def advance(self, index: int) -> None:
        """Send the tokens through block `index` of both models in their current state."""
        known = self._caches.pop(index, (None, None))
        for calibration, caches in zip((self.compressed, self.dense), reversed(known), strict=True):
            with caches.attach(self._finished_modules()) if caches else nullcontext():
                calibration.advance(index, watch=caches)

    def _writes_to_stream(self, index: int, stage: BlockStage) -> bool:
        return writes_to_stream(stage, self._stacks[0].blocks[index], self.dense.block_input(index, 0)[1])

    def _finished_modules(self, stage: BlockStage | None = None) -> list[str]:
        """Return the modules of the sublayers before a stage; all of them without one."""
        sublayers = self._stacks[0].entry.sublayers
        return [s.module for s in (sublayers if stage is None else sublayers[: sublayers.index(stage.sublayer)])]

    def _keep(self, index: int, stage: BlockStage, arrived: dict[int, Tensor]) -> None:
        """Cache the output of the twin's sublayer, computed from the inputs of its last linear, which are consumed."""
        linear = self._stacks[1].blocks[index].get_submodule(stage.linears[0])
        dense, twin = self._caches[index]
        with float32_products(linear):  # as in the passes that compute it
            while arrived:
                batch, x = arrived.popitem()
                twin.keep(stage.sublayer.module, batch, linear(x), dense)

    def _refine_(self, index: int, fitted: AnchoredBlock, request: FitRequest) -> AnchoredBlock:
        """Tune the fitted matrices of a block of the twin jointly."""
        linears = [self.twin.get_submodule(name) for name in (*fitted.factors, *fitted.dense)]
        if self._refinement is None or not linears:
            return fitted
        (stack, twin), caches = self._stacks, self._caches[index]
        last = stages_of(stack.entry, stack.blocks[index])[-1]
        root = root_of(request.gradients.get(last.linears[0]) if self._writes_to_stream(index, last) else None)

        def dense(batch: int) -> Tensor:
            caches[0].enter(batch, Tensor())
            return self.dense.block_input(index, batch)[1]()

        outputs = Outputs(
            len(self.compressed.sequences), dense, lambda batch: self.compressed.block_input(index, batch)[1](), root
        )
        caches[1] = SublayerCache(twin.blocks[index], ())  # the cached outputs are not those of the tuned block
        with caches[0].attach(self._finished_modules()):
            refine_(twin.blocks[index], linears, outputs, self._refinement, name=twin.path(index))
        return fitted.updated_from(self.twin)

    def _measure_stage(
        self, index: int, stage: BlockStage
    ) -> tuple[dict[str, tuple[InputStatistics, ResidualMoments | None]], dict[int, Tensor]]:
        """Measure, for every linear of a stage of the twin, its inputs and the residual of its outputs.

        Also returns the inputs by micro-batch where the only linear gives the output of the sublayer, which is cached.
        """
        stack, sequences = self._stacks[0], self.compressed.sequences
        block = stack.blocks[index]
        writes = self._anchoring.stream and self._writes_to_stream(index, stage)
        scale = stack.entry.branch_scale(stack.config)
        meters = {
            group: ResidualMeter.of(
                group, block, stack.path(index), self._measuring, sum(map(len, sequences)), scale if writes else None
            )
            for group in stage.groups
        }
        caches, arrived = self._caches[index], dict[int, Tensor]()
        last = stage.writes and caches[0].has(stage.sublayer.module)  # the dense sublayer's output is cached at once
        done = (
            self._finished_modules(stage),
            [*self._finished_modules(stage), *([stage.sublayer.module] if last else [])],
        )
        with caches[0].attach(done[1]), caches[1].attach(done[0]):
            for batch, range_ in enumerate(sequences):
                seen = []
                for side, calibration, cache in zip(self._stacks, (self.dense, self.compressed), caches, strict=True):
                    cache.enter(batch, Tensor())
                    arguments = (side.entry, side.config, side.blocks[index], *calibration.block_input(index, batch))
                    seen.append(capture_inputs(stage, *arguments, whole=last and side is stack))
                for group, meter in meters.items():
                    meter.update(range_.start, group, *seen)
                if last and writes and not stage.sublayer.output:
                    arrived[batch] = seen[1].inputs[stage.linears[0]]
        measured = dict[str, tuple[InputStatistics, ResidualMoments | None]]()
        for group, meter in meters.items():
            met = meter.finish()
            if met is None:
                continue
            inputs, missing = met
            for linear in group.linears:
                weight = block.get_parameter(f"{linear}.weight").detach().double()
                measured[linear] = inputs, missing if missing is None or writes else missing.at_outputs(weight)
        return measured, arrived


def anchor_blocks(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    matrices: Sequence[Matrix],
    ranks: Mapping[str, int | None],
    factors: Chosen,
    gradients: Mapping[int, Mapping[str, Float[Tensor, "m m"]]],
    measuring: CalibrationSettings,
    anchoring: Anchoring,
    refinement: Refinement | None = None,
    *,
    remember: bool = True,
) -> Iterator[AnchoredBlock]:
    """Yield the outcome of every block of a model at these ranks, in order; the model stays unchanged.

    Args:
        model: dense, with fused layers split, in eval mode.
        tokens: calibration sequences.
        matrices: all of the decoder.
        ranks: by the name of the matrix; `None` stays dense.
        factors: the factorizer and its options.
        gradients: second moments by block and linear; empty for factorizers that need none.
        measuring, anchoring, refinement: settings of the calibration, the fit and the tuning.
        remember: as in `Anchor`.

    Raises:
        UsageError, InputError, NumericalError: as `Anchor.compress`.
    """
    twin = twin_of(model)
    dense, compressed = (Calibration(side, tokens, measuring) for side in (model, twin))
    anchor = Anchor(model, twin, dense, compressed, measuring, anchoring, refinement, remember=remember)
    for index in remaining_blocks(anchor.compressed):
        inside = [matrix for matrix in matrices if matrix.block == index]
        block = anchor.compress(index, FitRequest(inside, ranks, factors, gradients.get(index, {})))
        yield block
        block.put_(twin)
        anchor.advance(index)


@contextmanager
def _restore_modules(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Restore the modules of these names after the context."""
    linears = {name: model.get_submodule(name) for name in names}
    try:
        yield
    finally:
        for name, linear in linears.items():
            model.set_submodule(name, linear)
