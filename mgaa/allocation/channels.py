"""Structured pruning of the FFN: whole channels are removed, without gradients (LoRAP, arXiv 2404.09695).

A channel of an FFN is a row of `gate` and of `up` and a column of `down`. Its importance adds, over these, the norm of its weights
times the norms of the calibration inputs that they meet,

    s_c = ||(|W_gate| ||X||)[c, :]|| + ||(|W_up| ||X||)[c, :]|| + ||(|W_down| ||h||)[:, c]||

with `||X_j||` the norm of input channel j over all tokens and `h` what enters `down`; an FFN without a gate has two terms. The paper
finds that the least important one per cent shall be kept. What remains is a smaller FFN of plain linears: it needs no factors, runs at
the speed of its size, and reloads because config.json says how wide every block is (`mgaa.checkpoints.format`).

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

from mgaa.budget import Matrix, kept_width, least_important
from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.models.widths import is_known
from mgaa.statistics.statistics import BlockStatistics


@dataclass(frozen=True)
class Pruning:
    """How an FFN is pruned.

    Attributes:
        keep_least: share of the channels that is kept for being the least important; the paper's finding is 0.01.
        multiple: of which the kept width is one; 1 for any width.
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
        pruning: how.
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
        """The smallest width: the first legal one with a channel more than the least important ones that are kept."""
        needed = least_important(self.count, self.pruning.keep_least) + 1
        return min(self.count, -(-needed // self.pruning.multiple) * self.pruning.multiple)

    def width(self, ratio: float) -> int:
        """Channels that remain at a compression ratio.

        Raises:
            UsageError: none of the important ones would.
        """
        width = kept_width(self.count, ratio, self.pruning.keep_least, self.pruning.multiple)
        if width < self.least:
            raise UsageError(
                f"the ratio {ratio:.4g} of sublayer {self.sublayer} leaves {width} of {self.count} channels, expected at least "
                f"{self.least}, so that an important one is left beside the least important ones: lower ratios.compression, "
                "channels.keep_least or channels.multiple"
            )
        return width


@dataclass(frozen=True)
class Scores:
    """What every channel of an FFN is worth, float64.

    Attributes:
        importance: `s_c`.
        energies: by the linear's name in its block: squared norm of what the channel contributes, `||(|W| ||X||)||^2`, whose kept share is
            one minus the squared error in the metric of `awsvd`, exactly.
    """

    importance: Float[Tensor, " c"]
    energies: dict[str, Float[Tensor, " c"]]

    def kept(self, width: int, keep_least: float) -> Int[Tensor, " k"]:
        """The channels that remain, in rising order of their index; equal importance goes by index."""
        order = self.importance.argsort(stable=True)
        first = least_important(len(order), keep_least)
        return torch.cat([order[:first], order[first + len(order) - width :]]).sort().values

    def kept_energy(self, linear: str, width: int, keep_least: float) -> float:
        """The share of the energy of a linear that remains."""
        energies = self.energies[linear]
        total = float(energies.sum())
        return float(energies[self.kept(width, keep_least)].sum()) / total if total else 1.0

    def curve(self, linear: str, keep_least: float) -> tuple[list[float], list[float]]:
        """Kept share of the parameters and of the energy of a linear, at every width from the least important channels on."""
        order, energies = self.importance.argsort(stable=True), self.energies[linear]
        first = least_important(len(order), keep_least)
        risen = energies[torch.cat([order[:first], order[first:].flip(0)])].cumsum(0)
        shares = torch.arange(1, len(order) + 1) / len(order)
        return shares.tolist(), (risen / risen[-1].clamp(min=1e-300)).tolist()


def prunable(matrices: Sequence[Matrix], pruning: Pruning) -> list[Channels]:
    """The FFN of every block.

    Args:
        matrices: of the whole model, or of some blocks.

    Raises:
        InputError: an FFN of a kind that the pruner does not know (a mixture of experts).
    """
    found = []
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
            found.append(Channels(name, inside, pruning))
    return found


def score(channels: Channels, weights: Mapping[str, Float[Tensor, "m n"]], statistics: BlockStatistics) -> Scores:
    """Importance and energies of the channels of one FFN, on the device of the weights.

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
    return Scores(importance, energies)


def save_scores(scores: Mapping[str, Scores], path: str | Path) -> None:
    """Write the scores of one block, by sublayer."""
    tensors = {f"{name}/importance": each.importance for name, each in scores.items()}
    tensors |= {f"{name}/{local}": energy for name, each in scores.items() for local, energy in each.energies.items()}
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)


def load_scores(path: str | Path) -> dict[str, Scores]:
    """Read what `save_scores` wrote."""
    found: dict[str, Scores] = {}
    tensors = load_file(path)
    for name in sorted({key.partition("/")[0] for key in tensors}):
        energies = {key.partition("/")[2]: tensor for key, tensor in tensors.items() if key.partition("/")[0] == name}
        found[name] = Scores(energies.pop("importance"), energies)
    return found
