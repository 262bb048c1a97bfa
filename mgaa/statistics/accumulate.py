"""Sums of the statistics: float64, one sequence at a time, in an order that neither micro-batches nor workers change.

Values of 16 bits are multiplied in float32, and only the sums of sequences are float64: rounding such products costs 5e-8 of the
covariance, rounding the values to bfloat16 has cost 4e-3. Other values are multiplied in float64.

The sequences of a part (`mgaa.statistics.shares`) are added in order, by the update of Chan, Golub and LeVeque (1979), which centres every
sequence before it squares: no cancellation.

A scatter is symmetric, so only its upper block panels are computed: three fifths of the multiplications for wide inputs.

An expert of a mixture receives only the tokens that the router sends it. Below a stated number of tokens per channel its covariance is
shrunk towards an isotropic one of equal trace, the target of Ledoit and Wolf (2004): `(1 - w) Cov + w tr(Cov)/n I` with
`w = 1 - tokens / minimum`. The weight is our choice (theirs needs fourth moments), measured by `benchmarks/experts.py`. An expert without
tokens is an error.

Legend: t tokens of one sequence, n channels of the input, d = n or m (channels of the measured side), g groups of sequences.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mgaa.errors import InputError, NumericalError
from mgaa.statistics.shares import Leaves, Share, merge_sums
from mgaa.statistics.statistics import InputStatistics

PANELS = 8
"""Block rows of a scatter; more would save less than their smaller products cost."""


@dataclass
class Moments:
    """Sums over some tokens of one input, float64.

    Attributes:
        count: tokens.
        sums: rows: sum of `x`, of `x^2`, of `|x|`.
        mean: mean of the measured side.
        scatter: sum of the centred outer products; only its upper block panels, the rest is zero.
        group_sums: sum of the measured side over the tokens of each group.
        group_counts: tokens of each group.
    """

    count: int
    sums: Float[Tensor, "3 n"]
    mean: Float[Tensor, " d"]
    scatter: Float[Tensor, "d d"]
    group_sums: Float[Tensor, "g d"]
    group_counts: Int[Tensor, " g"]

    @staticmethod
    def empty(z: Float[Tensor, "t d"], channels: int, groups: int) -> "Moments":
        """Return the sums over no tokens, on the device of `z`, the measured side."""
        width, z = z.shape[1], z.double()
        counts = torch.zeros(groups, dtype=torch.int64)
        return Moments(
            0,
            z.new_zeros(3, channels),
            z.new_zeros(width),
            z.new_zeros(width, width),
            z.new_zeros(groups, width),
            counts,
        )

    def add_(self, z: Float[Tensor, "t d"], sums: Float[Tensor, "3 n"], group: int) -> None:
        """Add the tokens of one sequence: the measured side, and the sums over its input. Products are computed in the dtype of `z`."""
        total, count = column_sums(z).double(), len(z)
        mean = total / count
        # the outer product of the difference of the means is an additional row
        rows = z.new_empty(count + 1, z.shape[1])
        torch.sub(z, mean.to(z), out=rows[:-1])
        rows[-1] = (mean - self.mean) * math.sqrt(self.count * count / (self.count + count))
        add_gram_(self.scatter, rows)
        self.sums += sums
        self.group_sums[group] += total
        self.group_counts[group] += count
        self._move_(mean, count)

    def merge_(self, other: "Moments") -> "Moments":
        """Add later tokens."""
        delta = other.mean - self.mean
        self.scatter += other.scatter
        add_gram_(self.scatter, delta[None] * math.sqrt(self.count * other.count / (self.count + other.count)))
        self.sums += other.sums
        self.group_sums += other.group_sums
        self.group_counts += other.group_counts
        self._move_(other.mean, other.count)
        return self

    def _move_(self, mean: Float[Tensor, " d"], count: int) -> None:
        self.mean += (mean - self.mean) * (count / (self.count + count))
        self.count += count


def column_sums(x: Float[Tensor, "t n"]) -> Float[Tensor, " n"]:
    """Sum the rows, as a matrix product: ten times as fast as `sum(0)` on a CPU."""
    return x.new_ones(len(x)) @ x


def add_gram_(scatter: Float[Tensor, "d d"], rows: Float[Tensor, "t d"]) -> None:
    """Add `rows^T rows` to the upper block panels; products are computed in the dtype of the rows."""
    width = len(scatter)
    height = max(128, -(-width // PANELS))
    for top in range(0, width, height):
        panel, left, right = scatter[top : top + height, top:], rows[:, top : top + height].T, rows[:, top:]
        if rows.dtype == scatter.dtype:
            panel.addmm_(left, right)
        else:
            panel += left @ right


def _powers(x: Float[Tensor, "t n"]) -> Float[Tensor, "3 n"]:
    """Sum `x`, `x^2` and `|x|` over the tokens."""
    return torch.stack([column_sums(x), column_sums(x.square()), column_sums(x.abs())])


def explain_unreached(linear: str) -> str:
    """Message for a linear of an expert that no token reached."""
    return (
        f"{linear} received none of the calibration tokens, expected at least one: the router never chose this expert; calibrate on more "
        "or other text (data.calibration.samples), or let such experts stay dense (statistics.unreached=dense)"
    )


class Accumulator:
    """Collects `InputStatistics` sequence by sequence.

    Args:
        name: the linear, for messages.
        groups: number of groups of consecutive sequences (at most one group per sequence is used).
        share: the sequences measured here; a number stands for all of so many sequences.
        weight: of the linear where the output side is measured; `None` for the input side.
        minimum: tokens per channel of the measured side, below which the covariance is shrunk.
    """

    def __init__(
        self,
        name: str,
        groups: int,
        share: Share | int,
        weight: Float[Tensor, "m n"] | None = None,
        minimum: float = 0.0,
    ) -> None:
        self._name, self._minimum = name, minimum
        self._share = Share(share) if isinstance(share, int) else share
        self._weight, self._precise = weight, weight
        self._groups = min(groups, self._share.sequences)
        self._leaves = Leaves[Moments](self._share)

    def update(self, sequence: int, x: Float[Tensor, "t n"], z: Float[Tensor, "t m"] | None = None) -> None:
        """Add the tokens of one sequence; an expert may receive none.

        Args:
            z: `W x`, where the output side is measured and it is known; otherwise it is computed, in float32 or, for float64 inputs,
                float64: products of 16-bit numbers are exact in it.

        Raises:
            NumericalError: an entry is NaN or infinite.
        """
        if len(x) == 0:
            return
        side = self._side(x) if z is None else z
        x = x.to(torch.float32 if x.dtype.itemsize == 2 else torch.float64)
        sums = _powers(x)
        if not bool(torch.isfinite(sums).all()):  # squares of bfloat16 can overflow float32
            x = x.double()
            sums = _powers(x)
        if not bool(torch.isfinite(sums[0]).all()):
            bad = int((~torch.isfinite(x)).sum())
            raise NumericalError(
                f"the input of {self._name} has {bad} non-finite entries in calibration sequence {sequence}: the backbone "
                "overflows or its weights are damaged; check the weights or set backbone.dtype to bfloat16 or float32"
            )
        z = x if self._weight is None else side.to(x.dtype)
        self._leaves.move_to(sequence)
        if self._leaves.current is None:
            self._leaves.current = Moments.empty(z, x.shape[1], self._groups)
        self._leaves.current.add_(z, sums, sequence * self._groups // self._share.sequences)

    def _side(self, x: Float[Tensor, "t n"]) -> Float[Tensor, "t d"]:
        if self._weight is None:
            return x
        precise = torch.promote_types(x.dtype, torch.float32)
        if x.is_cuda and x.dtype.itemsize == 2:  # tensor cores multiply in 16 bits and accumulate in float32
            return torch.mm(x, self._weight.T, out_dtype=precise)
        if self._precise is None or self._precise.dtype != precise:
            self._precise = self._weight.to(precise)  # once for all sequences
        return x.to(precise) @ self._precise.T

    def total(self) -> Moments | None:
        """Return the sums over this share; `None` without a token."""
        return self._leaves.total()

    def finish(self, shares: Iterable[Moments | None] | None = None) -> InputStatistics:
        """Return the statistics of everything added so far, or of the totals of all shares in order.

        Raises:
            InputError: no token was added.
        """
        result = self.finish_or_none(shares)
        if result is None:
            raise InputError(explain_unreached(self._name))
        return result

    def finish_or_none(self, shares: Iterable[Moments | None] | None = None) -> InputStatistics | None:
        """Return the statistics as `finish` does, but `None` where there was no token."""
        merged = self.total() if shares is None else merge_sums(shares)
        return None if merged is None else self._statistics(merged)

    def _statistics(self, moments: Moments) -> InputStatistics:
        mean, mean_square, mean_abs = moments.sums / moments.count
        upper = moments.scatter.triu_()  # in place: the accumulator is done
        statistics = InputStatistics(
            side="input" if self._weight is None else "output",
            count=moments.count,
            mean=mean,
            mean_square=mean_square,
            mean_abs=mean_abs,
            covariance=(upper + upper.triu(1).T).div_(moments.count),
            group_means=moments.group_sums / moments.group_counts.clamp(min=1).to(mean.device).unsqueeze(1),
            group_counts=moments.group_counts,
        )
        needed = self._minimum * len(statistics.covariance)
        return statistics if moments.count >= needed else self._shrunk(statistics, 1 - moments.count / needed)

    def _shrunk(self, statistics: InputStatistics, share: float) -> InputStatistics:
        """Shrink the covariance by `share`, equally inside groups and between them, so that pooled moments stay covariances.

        The diagonal statistics of the channels move towards their mean by the same share.
        """
        width = len(statistics.covariance)
        weight = None if self._weight is None else self._weight.double()
        round_ = torch.eye(width).to(statistics.mean) if weight is None else weight @ weight.T
        present = (statistics.group_counts > 0).to(statistics.mean).unsqueeze(1)
        variance = statistics.mean_square - statistics.mean.square()
        return replace(
            statistics,
            mean_square=statistics.mean.square() + variance.lerp(variance.mean(), share),
            mean_abs=statistics.mean_abs.lerp(statistics.mean_abs.mean(), share),
            covariance=(1 - share) * statistics.covariance + share * statistics.centred_scale * round_,
            group_means=present
            * (statistics.side_mean + math.sqrt(1 - share) * (statistics.group_means - statistics.side_mean)),
        )


@dataclass
class CosineSum:
    """Sum of the cosines of some tokens."""

    total: float
    count: int

    def merge_(self, other: "CosineSum") -> "CosineSum":
        """Add later tokens."""
        self.total, self.count = self.total + other.total, self.count + other.count
        return self


class CosineAccumulator:
    """Mean over tokens of the cosine between two streams (computed in float32, summed in float64)."""

    def __init__(self, name: str, share: Share | int) -> None:
        self._name, self._leaves = name, Leaves[CosineSum](Share(share) if isinstance(share, int) else share)

    def update(self, sequence: int, a: Float[Tensor, "t h"], b: Float[Tensor, "t h"]) -> None:
        """Add the tokens of one sequence, possibly none.

        Raises:
            NumericalError: a cosine is not finite.
        """
        if len(a) == 0:
            return
        a, b = a.float(), b.float()
        norms = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
        cosines = (a * b).sum(-1) / norms.clamp(min=1e-8)
        total = float(cosines.double().sum())
        if total != total:
            raise NumericalError(
                f"the residual stream of {self._name} is not finite in calibration sequence {sequence}: the backbone overflows or "
                "its weights are damaged; check the weights or set backbone.dtype to bfloat16 or float32"
            )
        self._leaves.move_to(sequence)
        cosine_sum = CosineSum(total, len(cosines))
        self._leaves.current = cosine_sum if self._leaves.current is None else self._leaves.current.merge_(cosine_sum)

    def total(self) -> CosineSum | None:
        """Return the sum over this share; `None` without a token."""
        return self._leaves.total()

    def finish(self, shares: Iterable[CosineSum | None] | None = None) -> float:
        """Return the mean cosine of everything added so far, or of the totals of all shares in order."""
        result = self.finish_or_none(shares)
        assert result is not None, "calibration has at least one token"
        return result

    def finish_or_none(self, shares: Iterable[CosineSum | None] | None = None) -> float | None:
        """Return the mean as `finish` does, but `None` where there was no token."""
        merged = self.total() if shares is None else merge_sums(shares)
        return None if merged is None else merged.total / merged.count
