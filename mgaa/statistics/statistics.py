"""Results of calibration: streaming sufficient statistics of every distinct input.

Each factorizer's metric derives from the token count, the mean, the centred covariance and the mean square and mean absolute value per
channel of a linear's input (methods: MGAA and its plug-ins). Linears that read the same tensor share one entry. A moment is measured on the
*narrower side*: where the outputs of an input's linears are together smaller than the input (`down_proj`), the covariance of the bias-free
output `z = W x` replaces that of the wide input, because `W Cov(x) W^T = Cov(z)`.

`mgaa.statistics.accumulate` sums them.

Legend: n channels of the input, d = n or m (channels of the measured side), g groups of sequences.
"""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

KINDS = ("image", "text")
"""Kinds of tokens, whose cosines are also kept separately."""

ROUNDING = 1e-12
"""Share of the mean square below which its difference to the squared mean is rounding, not variance."""


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of one input over all calibration tokens, float64.

    Attributes:
        side: `input`, or `output` where `covariance` is that of `z = W x`.
        count: number of tokens.
        mean, mean_square, mean_abs: per channel of the input.
        covariance: centred, divided by `count`, of the measured side.
        group_means: mean of the measured side over each group of consecutive sequences.
        group_counts: tokens of each group.
        gradient: second moment of the gradients of the output of one linear that reads the input (`mgaa.statistics.gradients`); `None`
            where none was measured.
    """

    side: Literal["input", "output"]
    count: int
    mean: Float[Tensor, " n"]
    mean_square: Float[Tensor, " n"]
    mean_abs: Float[Tensor, " n"]
    covariance: Float[Tensor, "d d"]
    group_means: Float[Tensor, "g d"]
    group_counts: Int[Tensor, " g"]
    gradient: Float[Tensor, "m m"] | None = None

    @property
    def side_mean(self) -> Float[Tensor, " d"]:
        """Mean of the measured side: of the input, or of `W x`."""
        return self.group_counts.to(self.group_means) @ self.group_means / self.count

    @property
    def scale(self) -> float:
        """Mean square of a channel of the input, `tr(G) / n`."""
        return float(self.mean_square.mean())

    @property
    def centred_scale(self) -> float:
        """Mean variance of a channel of the input, `tr(Cov) / n`; the rounding error of a constant channel counts as 0."""
        variance = self.mean_square - self.mean.square()
        return float(variance.where(~(variance / self.mean_square <= ROUNDING), 0.0).mean())


@dataclass(frozen=True)
class BlockStatistics:
    """Statistics of one decoder block.

    Attributes:
        cosines: mean cosine of the residual stream before and after each sublayer.
        branch_cosines: mean cosine of the stream before each sublayer and the addition of that sublayer (the sublayer alone: its norm
            belongs to it, the residual connection does not).
        inputs: the distinct statistics, by the first linear that reads them.
        shared: for every linear of the block (its name inside the block) the key in `inputs`.
        apart: for prompts with images, the cosines over image tokens only, and over the others, by `<sublayer>/<kind>` (`KINDS`).
        gradients: by linear: the second moment of the gradients of its output; empty where none were measured.
        unreached: linears of experts that no token reached, without statistics.
    """

    cosines: dict[str, float]
    branch_cosines: dict[str, float]
    inputs: dict[str, InputStatistics]
    shared: dict[str, str]
    apart: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, Float[Tensor, "m m"]] = field(default_factory=dict)
    unreached: tuple[str, ...] = ()

    def compared(self, *, residual: bool) -> dict[str, float]:
        """Return the cosines that level 1 compares: of the stream, or without the residual connection of the sublayer alone."""
        return self.cosines if residual else self.branch_cosines

    def of(self, linear: str) -> InputStatistics:
        """Return the statistics of the input of `linear`, and of the gradients of its output."""
        statistics = self.inputs[self.shared[linear]]
        return replace(statistics, gradient=self.gradients[linear]) if linear in self.gradients else statistics

    def save(self, path: Path) -> None:
        """Write one safetensors file, the same bytes for the same statistics; symmetric matrices as packed upper triangles."""
        tensors: dict[str, Tensor] = {}
        for key, stats in self.inputs.items():
            tensors[f"{key}/covariance"] = _pack(stats.covariance)
            for name in _VECTORS:
                tensors[f"{key}/{name}"] = getattr(stats, name).cpu().contiguous()
            tensors[f"{key}/count"] = torch.tensor(stats.count)
            tensors[f"{key}/output_side"] = torch.tensor(stats.side == "output")
        for sublayer in self.cosines:
            tensors[f"{_COSINE}{sublayer}"] = torch.tensor(
                [self.cosines[sublayer], self.branch_cosines[sublayer]], dtype=torch.float64
            )
        for name, cosine in self.apart.items():
            tensors[f"{_APART}{name}"] = torch.tensor(cosine, dtype=torch.float64)
        for linear, gradient in self.gradients.items():
            tensors[f"{_GRADIENT}{linear}"] = _pack(gradient)
        # one entry of metadata, because safetensors writes several in random order
        notes: dict[str, str | None] = {**self.shared, **dict.fromkeys(self.unreached)}
        save_file(tensors, path, metadata={"shared": json.dumps(notes)})

    @staticmethod
    def load(path: Path, device: str = "cpu") -> "BlockStatistics":
        """Read what `save` wrote."""
        with safe_open(path, framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            notes: dict[str, str | None] = json.loads(file.metadata()["shared"])
        shared = {linear: key for linear, key in notes.items() if key is not None}
        cosines = _cosines(tensors)
        return BlockStatistics(
            cosines={name: stream for name, (stream, _) in cosines.items()},
            branch_cosines={name: branch for name, (_, branch) in cosines.items()},
            inputs={key: _unpack(key, tensors) for key in dict.fromkeys(shared.values())},
            shared=shared,
            apart=_cosines_by_kind(tensors),
            gradients={
                linear: _symmetric(tensors[f"{_GRADIENT}{linear}"])
                for linear in shared
                if f"{_GRADIENT}{linear}" in tensors
            },
            unreached=tuple(linear for linear, key in notes.items() if key is None),
        )


def load_cosines_by_kind(path: Path) -> dict[str, float]:
    """Read the cosines by kind of token from a file of `BlockStatistics.save`, by `<sublayer>/<kind>`; empty for plain text."""
    with safe_open(path, framework="pt") as file:
        return _cosines_by_kind({name: file.get_tensor(name) for name in file.keys() if name.startswith(_APART)})  # noqa: SIM118


def load_unreached(path: Path) -> tuple[str, ...]:
    """Read the linears that no token reached from a file of `BlockStatistics.save`."""
    with safe_open(path, framework="pt") as file:
        notes: dict[str, str | None] = json.loads(file.metadata()["shared"])
    return tuple(linear for linear, key in notes.items() if key is None)


def load_gradients(path: Path, device: str = "cpu") -> dict[str, Float[Tensor, "m m"]]:
    """Read the second moments of the output gradients from a file of `BlockStatistics.save`, by linear; empty where none were measured."""
    with safe_open(path, framework="pt", device=device) as file:
        names = [name for name in file.keys() if name.startswith(_GRADIENT)]  # noqa: SIM118 (not a mapping)
        return {name.removeprefix(_GRADIENT): _symmetric(file.get_tensor(name)) for name in names}


def load_cosines(path: Path) -> dict[str, tuple[float, float]]:
    """Read the two cosines of every sublayer from a file of `BlockStatistics.save`: of the stream, and of the branch."""
    with safe_open(path, framework="pt") as file:
        return _cosines({name: file.get_tensor(name) for name in file.keys() if name.startswith(_COSINE)})  # noqa: SIM118


def _cosines(tensors: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    pairs = {name.removeprefix(_COSINE): pair for name, pair in tensors.items() if name.startswith(_COSINE)}
    return {name: (float(pair[0]), float(pair[1])) for name, pair in pairs.items()}


def _cosines_by_kind(tensors: dict[str, Tensor]) -> dict[str, float]:
    return {name.removeprefix(_APART): float(cosine) for name, cosine in tensors.items() if name.startswith(_APART)}


_COSINE, _APART, _GRADIENT = "cosine/", "apart/", "gradient/"


_VECTORS = ("mean", "mean_square", "mean_abs", "group_means", "group_counts")


def _unpack(key: str, tensors: dict[str, Tensor]) -> InputStatistics:
    return InputStatistics(
        side="output" if bool(tensors[f"{key}/output_side"]) else "input",
        count=int(tensors[f"{key}/count"]),
        covariance=_symmetric(tensors[f"{key}/covariance"]),
        **{name: tensors[f"{key}/{name}"] for name in _VECTORS},
    )


def _pack(matrix: Float[Tensor, "d d"]) -> Float[Tensor, " packed"]:
    return matrix[tuple(torch.triu_indices(*matrix.shape))].cpu()


def _symmetric(packed: Float[Tensor, " packed"]) -> Float[Tensor, "d d"]:
    width = (math.isqrt(8 * len(packed) + 1) - 1) // 2
    matrix = packed.new_zeros(width, width)
    rows, columns = torch.triu_indices(width, width)
    matrix[rows, columns] = packed
    matrix[columns, rows] = packed
    return matrix
