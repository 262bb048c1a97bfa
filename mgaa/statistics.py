"""What calibration remembers: streaming sufficient statistics of every distinct input.

Each factorizer's metric derives from the token count, the mean, the centred covariance and the mean square and mean absolute
value per channel of a linear's input (methods: MGAA and its plug-ins). Linears that read the same tensor share one entry. A moment
is taken on the *narrower side*: where the outputs of an input's linears are together smaller than the input (`down_proj`), the
covariance of the bias-free output `z = W x` stands in for that of the wide input, because `W Cov(x) W^T = Cov(z)`.

An expert of a mixture sees only the tokens that the router sends it. Below a stated number of tokens per channel its covariance is
shrunk towards an isotropic one of equal trace, the target of Ledoit and Wolf (2004): `(1 - w) Cov + w tr(Cov)/n I` with
`w = 1 - tokens / minimum`. The weight is our choice (theirs needs fourth moments), measured by `benchmarks/experts.py`. An expert without
tokens is an error.

Sums run in float64, one sequence at a time in a fixed order, by the pairwise update of Chan, Golub and LeVeque (1979), which centres every
sequence before it squares: no cancellation, and the micro-batch of the forward pass does not enter the order of summation.

Legend: t tokens of one sequence, n channels of the input, d = n or m (channels of the side measured), g groups of sequences.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mgaa.errors import InputError, NumericalError

ROUNDING = 1e-12
"""Share of the mean square below which the difference to the squared mean is rounding and no variance."""


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of one input over all calibration tokens, float64.

    Attributes:
        side: `input`, or `output` where `covariance` is that of `z = W x`.
        count: tokens seen.
        mean, mean_square, mean_abs: per channel of the input.
        covariance: centred, divided by `count`, of the side measured.
        group_means: mean of the side measured over each group of consecutive sequences.
        group_counts: tokens of each group.
    """

    side: Literal["input", "output"]
    count: int
    mean: Float[Tensor, " n"]
    mean_square: Float[Tensor, " n"]
    mean_abs: Float[Tensor, " n"]
    covariance: Float[Tensor, "d d"]
    group_means: Float[Tensor, "g d"]
    group_counts: Int[Tensor, " g"]

    @property
    def side_mean(self) -> Float[Tensor, " d"]:
        """Mean of the side measured: of the input, or of `W x`."""
        return self.group_counts.to(self.group_means) @ self.group_means / self.count

    @property
    def scale(self) -> float:
        """Mean square of a channel of the input, `tr(G) / n`."""
        return float(self.mean_square.mean())

    @property
    def centred_scale(self) -> float:
        """Mean variance of a channel of the input, `tr(Cov) / n`; what rounding leaves of a constant channel is 0."""
        variance = self.mean_square - self.mean.square()
        return float(variance.where(~(variance / self.mean_square <= ROUNDING), 0.0).mean())


class Accumulator:
    """Collects `InputStatistics` sequence by sequence.

    Args:
        name: the linear, for messages.
        groups: number of groups of consecutive sequences (at most one group per sequence is used).
        sequences: number of calibration sequences in all.
        weight: given where the output side is measured; `None` for the input side.
        minimum: tokens per channel of the side measured, below which the covariance is shrunk.
    """

    def __init__(
        self,
        name: str,
        groups: int,
        sequences: int,
        weight: Float[Tensor, "m n"] | None = None,
        minimum: float = 0.0,
    ) -> None:
        self._name, self._minimum = name, minimum
        self._weight = None if weight is None else weight.double()
        self._groups, self._sequences = min(groups, sequences), sequences
        self._count = 0
        self._sums: Tensor | None = None  # rows: sum of x, of x^2, of |x|
        self._mean = self._scatter = self._group_sums = self._group_counts = torch.empty(0)

    def update(self, sequence: int, x: Float[Tensor, "t n"]) -> None:
        """Add the tokens of one sequence; an expert may have none of it.

        Raises:
            NumericalError: an entry is NaN or infinite.
        """
        if len(x) == 0:
            return
        x = x.double()
        sums = torch.stack([x.sum(0), x.square().sum(0), x.abs().sum(0)])
        if not bool(torch.isfinite(sums[0]).all()):
            bad = int((~torch.isfinite(x)).sum())
            raise NumericalError(
                f"the input of {self._name} has {bad} non-finite entries in calibration sequence {sequence}: the backbone "
                "overflows or its weights are damaged; check the weights or set backbone.dtype to bfloat16 or float32"
            )
        z = x if self._weight is None else x @ self._weight.T
        if self._sums is None:
            self._start(sums, z)
        assert self._sums is not None
        self._sums += sums
        group = sequence * self._groups // self._sequences
        self._group_sums[group] += z.sum(0)
        self._group_counts[group] += len(z)
        self._merge(len(z), z.mean(0), z)

    def _start(self, sums: Float[Tensor, "3 n"], z: Float[Tensor, "t d"]) -> None:
        width = z.shape[1]
        self._sums = torch.zeros_like(sums)
        self._mean = z.new_zeros(width)
        self._scatter = z.new_zeros(width, width)
        self._group_sums = z.new_zeros(self._groups, width)
        self._group_counts = torch.zeros(self._groups, dtype=torch.int64)

    def _merge(self, count: int, mean: Float[Tensor, " d"], z: Float[Tensor, "t d"]) -> None:
        centred = z - mean
        delta = mean - self._mean
        total = self._count + count
        self._scatter.addmm_(centred.T, centred)
        self._scatter.addr_(delta, delta, alpha=self._count * count / total)
        self._mean += delta * (count / total)
        self._count = total

    def finish(self) -> InputStatistics:
        """The statistics of everything added so far.

        Raises:
            InputError: not a single token was added.
        """
        if self._sums is None:
            raise InputError(
                f"{self._name} received none of the calibration tokens, expected at least one: the router never chose this expert; "
                "calibrate on more or other text (data.calibration.samples)"
            )
        mean, mean_square, mean_abs = self._sums / self._count
        found = InputStatistics(
            side="input" if self._weight is None else "output",
            count=self._count,
            mean=mean,
            mean_square=mean_square,
            mean_abs=mean_abs,
            covariance=(self._scatter + self._scatter.T) / (2 * self._count),
            group_means=self._group_sums / self._group_counts.clamp(min=1).to(mean.device).unsqueeze(1),
            group_counts=self._group_counts,
        )
        needed = self._minimum * len(found.covariance)
        return found if self._count >= needed else self._shrunk(found, 1 - self._count / needed)

    def _shrunk(self, found: InputStatistics, share: float) -> InputStatistics:
        """Less of the covariance by `share`, inside groups and between them alike, so that what is pooled stays a covariance.

        The diagonal statistics of the channels move as much towards their mean.
        """
        width = len(found.covariance)
        round_ = torch.eye(width).to(found.mean) if self._weight is None else self._weight @ self._weight.T
        present = (found.group_counts > 0).to(found.mean).unsqueeze(1)
        variance = found.mean_square - found.mean.square()
        return replace(
            found,
            mean_square=found.mean.square() + variance.lerp(variance.mean(), share),
            mean_abs=found.mean_abs.lerp(found.mean_abs.mean(), share),
            covariance=(1 - share) * found.covariance + share * found.centred_scale * round_,
            group_means=present * (found.side_mean + math.sqrt(1 - share) * (found.group_means - found.side_mean)),
        )


class CosineAccumulator:
    """Mean over tokens of the cosine between two streams (computed in float32, summed in float64)."""

    def __init__(self, name: str) -> None:
        self._name, self._sum, self._count = name, 0.0, 0

    def update(self, sequence: int, a: Float[Tensor, "t h"], b: Float[Tensor, "t h"]) -> None:
        """Add the tokens of one sequence.

        Raises:
            NumericalError: a cosine is not finite.
        """
        cosines = torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1)
        total = float(cosines.double().sum())
        if total != total:
            raise NumericalError(
                f"the residual stream of {self._name} is not finite in calibration sequence {sequence}: the backbone overflows or "
                "its weights are damaged; check the weights or set backbone.dtype to bfloat16 or float32"
            )
        self._sum, self._count = self._sum + total, self._count + len(cosines)

    def finish(self) -> float:
        """The mean cosine."""
        return self._sum / self._count


@dataclass(frozen=True)
class BlockStatistics:
    """Everything calibration keeps of one decoder block.

    Attributes:
        cosines: by sublayer: mean cosine of the residual stream before and after it.
        branch_cosines: by sublayer: mean cosine of the stream before it and of what the sublayer adds.
        inputs: the distinct statistics, by the first linear that reads them.
        shared: for every linear of the block (its name inside the block) the key in `inputs`.
    """

    cosines: dict[str, float]
    branch_cosines: dict[str, float]
    inputs: dict[str, InputStatistics]
    shared: dict[str, str]

    def of(self, linear: str) -> InputStatistics:
        """The statistics of the input of `linear`."""
        return self.inputs[self.shared[linear]]

    def save(self, path: Path) -> None:
        """Write one safetensors file, the same bytes for the same statistics; covariances as their packed upper triangle."""
        tensors: dict[str, Tensor] = {}
        for key, stats in self.inputs.items():
            rows, columns = torch.triu_indices(*stats.covariance.shape)
            tensors[f"{key}/covariance"] = stats.covariance[rows, columns].cpu()
            for field in _VECTORS:
                tensors[f"{key}/{field}"] = getattr(stats, field).cpu().contiguous()
            tensors[f"{key}/count"] = torch.tensor(stats.count)
            tensors[f"{key}/output_side"] = torch.tensor(stats.side == "output")
        for sublayer in self.cosines:
            tensors[f"{_COSINE}{sublayer}"] = torch.tensor(
                [self.cosines[sublayer], self.branch_cosines[sublayer]], dtype=torch.float64
            )
        # one entry of metadata, because safetensors writes several in random order
        save_file(tensors, path, metadata={"shared": json.dumps(self.shared)})

    @staticmethod
    def load(path: Path, device: str = "cpu") -> "BlockStatistics":
        """Read what `save` wrote."""
        with safe_open(path, framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            shared: dict[str, str] = json.loads(file.metadata()["shared"])
        cosines = _cosines(tensors)
        return BlockStatistics(
            cosines={name: stream for name, (stream, _) in cosines.items()},
            branch_cosines={name: branch for name, (_, branch) in cosines.items()},
            inputs={key: _unpack(key, tensors) for key in dict.fromkeys(shared.values())},
            shared=shared,
        )


def load_cosines(path: Path) -> dict[str, tuple[float, float]]:
    """The two cosines of every sublayer in a file of `BlockStatistics.save`: of the stream, and of the branch."""
    with safe_open(path, framework="pt") as file:
        return _cosines({name: file.get_tensor(name) for name in file.keys() if name.startswith(_COSINE)})  # noqa: SIM118


def _cosines(tensors: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    pairs = {name.removeprefix(_COSINE): pair for name, pair in tensors.items() if name.startswith(_COSINE)}
    return {name: (float(pair[0]), float(pair[1])) for name, pair in pairs.items()}


_COSINE = "cosine/"


_VECTORS = ("mean", "mean_square", "mean_abs", "group_means", "group_counts")


def _unpack(key: str, tensors: dict[str, Tensor]) -> InputStatistics:
    width = tensors[f"{key}/group_means"].shape[1]
    covariance = torch.zeros(width, width, dtype=torch.float64, device=tensors[f"{key}/covariance"].device)
    rows, columns = torch.triu_indices(width, width)
    covariance[rows, columns] = tensors[f"{key}/covariance"]
    covariance[columns, rows] = tensors[f"{key}/covariance"]
    return InputStatistics(
        side="output" if bool(tensors[f"{key}/output_side"]) else "input",
        count=int(tensors[f"{key}/count"]),
        covariance=covariance,
        **{field: tensors[f"{key}/{field}"] for field in _VECTORS},
    )
