"""Fit of one stage of a block: its matrices approximate the outputs of the dense model on the inputs of the compressed one
(`mgaa.anchoring`).

Legend: t tokens of a sequence, n inputs, m outputs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.anchoring.stages import StageInputs
from mgaa.budget import Matrix
from mgaa.checkpoints.save import apply_dense, apply_factors
from mgaa.decomposition.regression import ResidualAccumulator, ResidualMoments, solve_regression
from mgaa.errors import UsageError
from mgaa.factors import decompose_block, factorize
from mgaa.levels import Chosen, adds_biases
from mgaa.models.architecture_schema import Group
from mgaa.models.lowrank import Dense, Factors, LowRankLinear
from mgaa.statistics.accumulate import Accumulator
from mgaa.statistics.calibration import CalibrationSettings
from mgaa.statistics.shares import Share
from mgaa.statistics.statistics import BlockStatistics, InputStatistics


@dataclass(frozen=True)
class Anchoring:
    """Settings of the fit to the dense model.

    Attributes:
        stream: whether o and down also compensate the difference of the residual streams.
        dense: whether matrices that stay dense are fitted, too.
        damping: of the regression, relative to the mean square of an input channel; it pulls `W'` towards `W`. Below 1e-6 it no longer
            hides the rounding of float32 products.

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
    """Outcome for one block, by matrix name: factors, and weights that stay dense but differ from those of the model."""

    factors: dict[str, Factors] = field(default_factory=dict)
    dense: dict[str, Dense] = field(default_factory=dict)

    def put_(self, model: nn.Module) -> None:
        """Put the outcome into the model, or into a twin of it, in place."""
        apply_factors(model, self.factors)
        apply_dense(model, self.dense)

    def updated_from(self, model: nn.Module) -> "AnchoredBlock":
        """Return the same matrices with the values that they have in the model, which was tuned since they were put into it."""
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
class FitRequest:
    """Request to fit the matrices of a block.

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


@dataclass(frozen=True, eq=False)
class ResidualMeter:
    """Measures the inputs of the linears that share one input, and the residual to the dense model.

    Attributes:
        inputs: accumulates the inputs of the compressed model.
        missing: accumulates the residual; `None` for an expert, whose inputs are those of the dense model.
        writing: the weight of the only linear and the scale of its branch, where it writes to the residual stream.
        unreached: as in `mgaa.statistics.calibration.CalibrationSettings`.
    """

    inputs: Accumulator
    missing: ResidualAccumulator | None
    writing: tuple[Tensor, float] | None
    unreached: str = "stop"

    @staticmethod
    def of(
        group: Group, block: nn.Module, path: str, measuring: CalibrationSettings, sequences: int, scale: float | None
    ) -> "ResidualMeter":
        """Set up the meter for one shared input of a dense block.

        Args:
            path: of the block, for messages.
            sequences: of the calibration.
            scale: of the branch, where the only linear writes to the residual stream; otherwise `None`.
        """
        minimum = 0.0 if group.expert is None else measuring.expert_tokens
        inputs = Accumulator(f"{path}.{group.linears[0]}", measuring.groups, Share(sequences), minimum=minimum)
        weight: Tensor = block.get_parameter(f"{group.linears[0]}.weight").detach()
        writing = None if scale is None else (weight.to(torch.promote_types(weight.dtype, torch.float32)), scale)
        return ResidualMeter(
            inputs, None if group.expert is not None else ResidualAccumulator(), writing, measuring.unreached
        )

    def update(self, first: int, group: Group, dense: StageInputs, arrived: StageInputs) -> None:
        """Add a micro-batch, whose first sequence has number `first`."""
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
                lacks = torch.addmm(streams, lacks.to(weight.dtype), weight.T, beta=1 / scale)
            self.missing.update(lacks, x)

    def finish(self) -> tuple[InputStatistics, ResidualMoments | None] | None:
        """Return the statistics of the inputs and the residual moments, the latter at the outputs where the linear writes to the stream.

        `None` for an expert that no token reached and that is to stay dense.

        Raises:
            InputError: no token reached an expert that must not stay dense.
        """
        if self.missing is not None:
            return self.inputs.finish(), self.missing.finish()
        statistics = self.inputs.finish_or_none() if self.unreached == "dense" else self.inputs.finish()
        return None if statistics is None else (statistics, None)


def fit_stage(
    twin: PreTrainedModel,
    request: FitRequest,
    measured: Mapping[str, tuple[InputStatistics, ResidualMoments | None]],
    anchoring: Anchoring,
) -> AnchoredBlock:
    """Fit and factorize the matrices of one stage; the twin, where they are dense, stays unchanged.

    Args:
        measured: by linear: the statistics of its inputs and the residual of its outputs; a linear that no token reached is absent and
            stays unchanged.

    Raises:
        NumericalError: a fitted matrix is not finite.
    """
    (name, options), damping, fitted = request.factors, anchoring.damping, AnchoredBlock()
    adds, solutions = adds_biases(request.factors), dict[str, tuple[Tensor, Tensor | None]]()
    matrices = [matrix for matrix in request.matrices if matrix.local in measured]
    for matrix in matrices:
        linear = twin.get_submodule(matrix.name)
        assert isinstance(linear, nn.Linear)
        bias = None if linear.bias is None else linear.bias.detach().double()
        centred = bias is not None or (adds and request.ranks[matrix.name] is not None)
        arrived, missing = measured[matrix.local]
        weight, lost = solve_regression(
            linear.weight.detach(), missing, arrived, damping=damping, centred=centred, name=matrix.name
        )
        solutions[matrix.local] = weight, lost if bias is None or lost is None else bias + lost
    low = [matrix for matrix in matrices if request.ranks[matrix.name] is not None]
    statistics = BlockStatistics(
        {}, {}, {x: measured[x][0] for x in solutions}, {x: x for x in solutions}, gradients=dict(request.gradients)
    )
    bases = decompose_block({matrix.local: solutions[matrix.local][0] for matrix in low}, statistics, name, **options)
    for matrix in matrices:
        weight, shift = solutions[matrix.local]
        if (rank := request.ranks[matrix.name]) is not None:
            basis = bases.pop(matrix.local)
            fitted.factors[matrix.name] = factorize(weight, shift, basis, rank, dtype=twin.dtype)
        elif anchoring.dense and measured[matrix.local][1] is not None:
            fitted.dense[matrix.name] = Dense(weight.to(twin.dtype), None if shift is None else shift.to(twin.dtype))
    return fitted
