"""Structured pruning of the FFN: whole channels are removed, without gradients (LoRAP, arXiv 2404.09695).

A channel of an FFN is a row of `gate` and of `up` and a column of `down`. Its importance sums, over these, the norm of its weights times
the norms of the calibration inputs that they multiply,

    s_c = ||(|W_gate| ||X||)[c, :]|| + ||(|W_up| ||X||)[c, :]|| + ||(|W_down| ||h||)[:, c]||

with `||X_j||` the norm of input channel j over all tokens and `h` the input of `down`; an FFN without a gate has two terms. The paper finds
that the least important one per cent should be kept. The result is a smaller FFN of plain linears: it needs no factors, runs at the speed
of its size, and loads again because config.json records the width of every block (`mgaa.checkpoints.format`).

Legend: c channels of the FFN, h hidden size, k kept channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from mgaa.budget import Matrix, count_least_important, kept_width
from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.models.widths import is_known
from mgaa.statistics.statistics import BlockStatistics


@dataclass(frozen=True)
class Pruning:
    """Settings of FFN pruning.

    Attributes:
        keep_least: share of the channels to keep for being the least important; the paper finds 0.01.
        multiple: the kept width is a multiple of this; 1 for any width.
    """

    keep_least: float = 0.01
    multiple: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.keep_least, int | float) or not 0 <= self.keep_least < 1:
            raise UsageError(
                f"channels.keep_least is {self.keep_least!r}, expected a share from 0 to below 1, such as 0.01"
            )
        if not isinstance(self.multiple, int) or isinstance(self.multiple, bool) or self.multiple < 1:
            raise UsageError(
                f"channels.multiple is {self.multiple!r}, expected a positive whole number such as 1 or 64"
            )


@dataclass(frozen=True)
class Channels:
    """An FFN whose channels can be pruned.

    Attributes:
        sublayer: `<block>.ffn`.
        matrices: gate (if there is one), up and down.
        pruning: the settings.
    """

    sublayer: str
    matrices: tuple[Matrix, ...]
    pruning: Pruning

    @property
    def count(self) -> int:
        """Channels of the dense FFN."""
        return self.matrices[-1].n

    @property
    def cost(self) -> int:
        """Linear parameters of one channel."""
        return sum(matrix.parameters for matrix in self.matrices) // self.count

    @property
    def parameters(self) -> int:
        """Linear parameters of the dense FFN."""
        return self.cost * self.count

    @property
    def least(self) -> int:
        """The smallest width: the first allowed one with a channel more than the least important ones that are kept."""
        needed = count_least_important(self.count, self.pruning.keep_least) + 1
        return min(self.count, -(-needed // self.pruning.multiple) * self.pruning.multiple)

    def width(self, ratio: float) -> int:
        """Return the number of channels that remain at a compression ratio.

        Raises:
            UsageError: no important channel would remain.
        """
        width = kept_width(self.count, ratio, self.pruning.keep_least, self.pruning.multiple)
        if width < self.least:
            raise UsageError(
                f"the ratio {ratio:.4g} of sublayer {self.sublayer} leaves {width} of {self.count} channels, expected at least "
                f"{self.least}, so that an important one is left besides the least important ones: lower ratios.compression, "
                "channels.keep_least or channels.multiple"
            )
        return width


@dataclass(frozen=True)
class ChannelScores:
    """Scores of every channel of an FFN, float64.

    Attributes:
        importance: `s_c`.
        energies: by the linear's name in its block: squared norm of the channel's contribution, `||(|W| ||X||)||^2`; the kept share is one
            minus the squared error in the metric of `awsvd`, exactly.
    """

    importance: Float[Tensor, " c"]
    energies: dict[str, Float[Tensor, " c"]]

    def kept_channels(self, width: int, keep_least: float) -> Int[Tensor, " k"]:
        """Return the channels that remain, in ascending order of their index; ties in importance are broken by index."""
        order = self.importance.argsort(stable=True)
        first = count_least_important(len(order), keep_least)
        return torch.cat([order[:first], order[first + len(order) - width :]]).sort().values

    def kept_energy(self, linear: str, width: int, keep_least: float) -> float:
        """Return the share of a linear's energy that remains."""
        energies = self.energies[linear]
        total = float(energies.sum())
        return float(energies[self.kept_channels(width, keep_least)].sum()) / total if total else 1.0

    def curve(self, linear: str, keep_least: float) -> tuple[list[float], list[float]]:
        """Return the kept shares of parameters and of energy of a linear, at every width from the least important channels on."""
        order, energies = self.importance.argsort(stable=True), self.energies[linear]
        first = count_least_important(len(order), keep_least)
        risen = energies[torch.cat([order[:first], order[first:].flip(0)])].cumsum(0)
        shares = torch.arange(1, len(order) + 1) / len(order)
        return shares.tolist(), (risen / risen[-1].clamp(min=1e-300)).tolist()


def prunable_ffns(matrices: Sequence[Matrix], pruning: Pruning) -> list[Channels]:
    """Return the FFN of every block.

    Args:
        matrices: of the whole model, or of some blocks.

    Raises:
        InputError: an FFN is of a kind that cannot be pruned (a mixture of experts).
    """
    ffns = []
    for name, group in groupby(matrices, key=lambda matrix: matrix.sublayer):
        inside = tuple(group)
        roles = [matrix.role for matrix in inside]
        if name.endswith(".ffn"):
            if not is_known(roles):
                locals_ = [matrix.local for matrix in inside]
                raise InputError(
                    f"the FFN {name} has {len(locals_)} linears ({', '.join(locals_[:4])}...), expected one gate or none, one up and one "
                    "down: a mixture of experts cannot be pruned; set channels.method to none"
                )
            ffns.append(Channels(name, inside, pruning))
    return ffns


def score(
    channels: Channels, weights: Mapping[str, Float[Tensor, "m n"]], statistics: BlockStatistics
) -> ChannelScores:
    """Compute importance and energies of the channels of one FFN, on the device of the weights.

    Args:
        weights: by the linear's name inside the block.
        statistics: of the same block.

    Raises:
        NumericalError: a score is not finite.
    """
    energies = {}
    for matrix in channels.matrices:
        squares = weights[matrix.local].double().square()
        met = statistics.of(matrix.local).mean_square.to(squares)
        energies[matrix.local] = squares.sum(0) * met if matrix.role == "down" else squares @ met
    importance = torch.stack([energy.sqrt() for energy in energies.values()]).sum(0)
    if not bool(torch.isfinite(importance).all()):
        raise NumericalError(
            f"the channel scores of {channels.sublayer} have non-finite entries: its weights or its input statistics are damaged; check "
            "the weights and calibrate again"
        )
    return ChannelScores(importance, energies)


def save_scores(scores: Mapping[str, ChannelScores], path: str | Path) -> None:
    """Write the scores of one block, by sublayer."""
    tensors = {f"{name}/importance": ffn.importance for name, ffn in scores.items()}
    tensors |= {f"{name}/{local}": energy for name, ffn in scores.items() for local, energy in ffn.energies.items()}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_scores(path: str | Path) -> dict[str, ChannelScores]:
    """Read what `save_scores` wrote."""
    scores: dict[str, ChannelScores] = {}
    tensors = load_file(path)
    for name in sorted({key.partition("/")[0] for key in tensors}):
        energies = {key.partition("/")[2]: tensor for key, tensor in tensors.items() if key.partition("/")[0] == name}
        scores[name] = ChannelScores(energies.pop("importance"), energies)
    return scores
