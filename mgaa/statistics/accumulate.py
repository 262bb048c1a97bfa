"""How the statistics are summed: float64, one sequence at a time, in an order that neither micro-batches nor workers change.

The sequences are cut into up to eight *parts* of consecutive ones. Inside a part they are added in order, by the update of Chan, Golub
and LeVeque (1979), which centres every sequence before it squares: no cancellation. The parts are then merged pairwise, as the leaves of
a binary tree. A worker that has a half, a quarter or an eighth of the sequences has whole branches of that tree, so what several workers
sum apart and merge in order has the same bits as the sum of one.

A scatter is symmetric, so only its upper block panels are computed: three fifths of the multiplications for wide inputs.

An expert of a mixture sees only the tokens that the router sends it. Below a stated number of tokens per channel its covariance is
shrunk towards an isotropic one of equal trace, the target of Ledoit and Wolf (2004): `(1 - w) Cov + w tr(Cov)/n I` with
`w = 1 - tokens / minimum`. The weight is our choice (theirs needs fourth moments), measured by `benchmarks/experts.py`. An expert without
tokens is an error.

Legend: t tokens of one sequence, n channels of the input, d = n or m (channels of the side measured), g groups of sequences.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.statistics.statistics import InputStatistics

PARTS = 8
"""The most parts that calibration sequences are cut into, and so the most shares; a power of two."""

PANELS = 8
"""Block rows of a scatter; more save less than their smaller products cost."""


@dataclass(frozen=True)
class Share:
    """The sequences that one of several workers measures: share `index` of `of` equal ones.

    Raises:
        UsageError: `of` is no power of two, or more than the sequences or `PARTS` allow.
    """

    sequences: int
    index: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if self.of not in (allowed := [1 << n for n in range(self.all_parts.bit_length())]):
            raise UsageError(
                f"calibration is cut into {self.of} shares, expected one of {', '.join(map(str, allowed))} with "
                f"{self.sequences} sequences (statistics.shards)"
            )

    @property
    def all_parts(self) -> int:
        """How many parts the sequences of all shares are cut into."""
        return 1 << (min(self.sequences, PARTS).bit_length() - 1)

    @property
    def parts(self) -> range:
        """Those of this share."""
        size = self.all_parts // self.of
        return range(self.index * size, (self.index + 1) * size)

    def part_of(self, sequence: int) -> int:
        """The part that a sequence belongs to."""
        return sequence * self.all_parts // self.sequences

    def first_of(self, part: int) -> int:
        """The first sequence of a part; of the part behind the last one, the number of sequences."""
        return -(-part * self.sequences // self.all_parts)

    def batches(self, size: int) -> list[range]:
        """The sequences of this share in micro-batches, none of which reaches over the end of a part."""
        return [
            range(first, min(first + size, self.first_of(part + 1)))
            for part in self.parts
            for first in range(self.first_of(part), self.first_of(part + 1), size)
        ]


@runtime_checkable
class Mergeable(Protocol):
    """Sums over some tokens, that take in the sums over the next ones."""

    def merge_(self, other: Any) -> Any:
        """Add `other`, of the same type, in place, and return `self`."""


Sum = TypeVar("Sum", bound=Mergeable)


class Pairwise(Generic[Sum]):
    """Merges sums that come in order as the leaves of a binary tree; `None` is a leaf without tokens."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Sum | None]] = []  # level and sum of the complete branches, leftmost first

    def push(self, leaf: Sum | None) -> None:
        """The next leaf."""
        level = 0
        while self._waiting and self._waiting[-1][0] == level:
            leaf = _merged(self._waiting.pop()[1], leaf)
            level += 1
        self._waiting.append((level, leaf))

    def total(self) -> Sum | None:
        """The sum of all leaves so far; nothing may be pushed behind it."""
        total: Sum | None = None
        while self._waiting:
            total = _merged(self._waiting.pop()[1], total)
        return total


def _merged(left: Sum | None, right: Sum | None) -> Sum | None:
    if left is None or right is None:
        return right if left is None else left
    together: Sum = left.merge_(right)
    return together


def merged(sums: Iterable[Sum | None]) -> Sum | None:
    """The sums of all shares, in order, as one worker would have them; they are used up."""
    tree = Pairwise[Sum]()
    for each in sums:
        tree.push(each)
    return tree.total()


class Leaves(Generic[Sum]):
    """The sums of a share, part after part; `current` is that of the part at hand, `None` where it has no token yet."""

    def __init__(self, share: Share) -> None:
        self._share, self._part, self._tree = share, share.parts[0], Pairwise[Sum]()
        self.current: Sum | None = None

    def turn_to(self, sequence: int) -> None:
        """Go on to the part of a sequence."""
        self._until(self._share.part_of(sequence))

    def total(self) -> Sum | None:
        """Of all parts; `None` without a token."""
        self._until(self._share.parts[-1] + 1)
        return self._tree.total()

    def _until(self, part: int) -> None:
        while self._part < part:
            self._tree.push(self.current)
            self._part, self.current = self._part + 1, None


@dataclass
class Moments:
    """Sums over some tokens of one input, float64.

    Attributes:
        count: tokens.
        sums: rows: sum of `x`, of `x^2`, of `|x|`.
        mean: of the side measured.
        scatter: sum of the centred outer products; its upper block panels, the rest is zero.
        group_sums: sum of the side measured over the tokens of each group.
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
        """Of no token; on the device of `z`, the side measured."""
        width = z.shape[1]
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
        """Add the tokens of one sequence: the side measured, and the sums over its input."""
        total, count = column_sums(z), len(z)
        mean = total / count
        # the outer product that joins two means is one more row
        rows = z.new_empty(count + 1, z.shape[1])
        torch.sub(z, mean, out=rows[:-1])
        torch.mul(mean - self.mean, math.sqrt(self.count * count / (self.count + count)), out=rows[-1])
        add_gram_(self.scatter, rows)
        self.sums += sums
        self.group_sums[group] += total
        self.group_counts[group] += count
        self._move_(mean, count)

    def merge_(self, other: "Moments") -> "Moments":
        """Add the tokens behind these."""
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
    """The sum of the rows, as a product: on a CPU ten times as fast as `sum(0)`."""
    return x.new_ones(len(x)) @ x


def add_gram_(scatter: Float[Tensor, "d d"], rows: Float[Tensor, "t d"]) -> None:
    """Add `rows^T rows` to the upper block panels; the products are those of the dtype of the rows."""
    width = len(scatter)
    height = max(128, -(-width // PANELS))
    for top in range(0, width, height):
        panel, left, right = scatter[top : top + height, top:], rows[:, top : top + height].T, rows[:, top:]
        if rows.dtype == scatter.dtype:
            panel.addmm_(left, right)
        else:
            panel += left @ right


def unreached(linear: str) -> str:
    """What is said of a linear of an expert that no token has reached."""
    return (
        f"{linear} received none of the calibration tokens, expected at least one: the router never chose this expert; calibrate on more "
        "or other text (data.calibration.samples), or let such experts stay dense (statistics.unreached=dense)"
    )


class Accumulator:
    """Collects `InputStatistics` sequence by sequence.

    Args:
        name: the linear, for messages.
        groups: number of groups of consecutive sequences (at most one group per sequence is used).
        share: the sequences that are measured here; a number stands for all of so many.
        weight: given where the output side is measured; `None` for the input side.
        minimum: tokens per channel of the side measured, below which the covariance is shrunk.
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
        """Add the tokens of one sequence; an expert may have none of it.

        Args:
            z: `W x`, where the output side is measured and it is known; else it is computed, in float32 or, for float64 inputs, float64:
                products of numbers of 16 bits are exact in it.

        Raises:
            NumericalError: an entry is NaN or infinite.
        """
        if len(x) == 0:
            return
        side = self._side(x) if z is None else z
        x = x.double()
        sums = torch.stack([column_sums(x), column_sums(x.square()), column_sums(x.abs())])
        if not bool(torch.isfinite(sums[0]).all()):
            bad = int((~torch.isfinite(x)).sum())
            raise NumericalError(
                f"the input of {self._name} has {bad} non-finite entries in calibration sequence {sequence}: the backbone "
                "overflows or its weights are damaged; check the weights or set backbone.dtype to bfloat16 or float32"
            )
        z = x if self._weight is None else side.double()
        self._leaves.turn_to(sequence)
        if self._leaves.current is None:
            self._leaves.current = Moments.empty(z, x.shape[1], self._groups)
        self._leaves.current.add_(z, sums, sequence * self._groups // self._share.sequences)

    def _side(self, x: Float[Tensor, "t n"]) -> Float[Tensor, "t d"]:
        if self._weight is None:
            return x
        precise = torch.promote_types(x.dtype, torch.float32)
        if x.is_cuda and x.dtype.itemsize == 2:  # tensor cores multiply 16 bits and add up in float32
            return torch.mm(x, self._weight.T, out_dtype=precise)
        if self._precise is None or self._precise.dtype != precise:
            self._precise = self._weight.to(precise)  # once for all sequences
        return x.to(precise) @ self._precise.T

    def total(self) -> Moments | None:
        """The sums over this share; `None` without a token."""
        return self._leaves.total()

    def finish(self, shares: Iterable[Moments | None] | None = None) -> InputStatistics:
        """The statistics of everything added so far, or of the totals of all shares in order.

        Raises:
            InputError: not a single token was added.
        """
        found = self.measured(shares)
        if found is None:
            raise InputError(unreached(self._name))
        return found

    def measured(self, shares: Iterable[Moments | None] | None = None) -> InputStatistics | None:
        """`finish`, and `None` where there was no token."""
        found = self.total() if shares is None else merged(shares)
        return None if found is None else self._statistics(found)

    def _statistics(self, found: Moments) -> InputStatistics:
        mean, mean_square, mean_abs = found.sums / found.count
        upper = found.scatter.triu_()  # in place: the accumulator is done
        statistics = InputStatistics(
            side="input" if self._weight is None else "output",
            count=found.count,
            mean=mean,
            mean_square=mean_square,
            mean_abs=mean_abs,
            covariance=(upper + upper.triu(1).T).div_(found.count),
            group_means=found.group_sums / found.group_counts.clamp(min=1).to(mean.device).unsqueeze(1),
            group_counts=found.group_counts,
        )
        needed = self._minimum * len(statistics.covariance)
        return statistics if found.count >= needed else self._shrunk(statistics, 1 - found.count / needed)

    def _shrunk(self, found: InputStatistics, share: float) -> InputStatistics:
        """Less of the covariance by `share`, inside groups and between them alike, so that what is pooled stays a covariance.

        The diagonal statistics of the channels move as much towards their mean.
        """
        width = len(found.covariance)
        weight = None if self._weight is None else self._weight.double()
        round_ = torch.eye(width).to(found.mean) if weight is None else weight @ weight.T
        present = (found.group_counts > 0).to(found.mean).unsqueeze(1)
        variance = found.mean_square - found.mean.square()
        return replace(
            found,
            mean_square=found.mean.square() + variance.lerp(variance.mean(), share),
            mean_abs=found.mean_abs.lerp(found.mean_abs.mean(), share),
            covariance=(1 - share) * found.covariance + share * found.centred_scale * round_,
            group_means=present * (found.side_mean + math.sqrt(1 - share) * (found.group_means - found.side_mean)),
        )


@dataclass
class CosineSum:
    """The cosines of some tokens."""

    total: float
    count: int

    def merge_(self, other: "CosineSum") -> "CosineSum":
        """Add the tokens behind these."""
        self.total, self.count = self.total + other.total, self.count + other.count
        return self


class CosineAccumulator:
    """Mean over tokens of the cosine between two streams (computed in float32, summed in float64)."""

    def __init__(self, name: str, share: Share | int) -> None:
        self._name, self._leaves = name, Leaves[CosineSum](Share(share) if isinstance(share, int) else share)

    def update(self, sequence: int, a: Float[Tensor, "t h"], b: Float[Tensor, "t h"]) -> None:
        """Add the tokens of one sequence; there may be none of them.

        Raises:
            NumericalError: a cosine is not finite.
        """
        if len(a) == 0:
            return
        cosines = torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=-1)
        total = float(cosines.double().sum())
        if total != total:
            raise NumericalError(
                f"the residual stream of {self._name} is not finite in calibration sequence {sequence}: the backbone overflows or "
                "its weights are damaged; check the weights or set backbone.dtype to bfloat16 or float32"
            )
        self._leaves.turn_to(sequence)
        found = CosineSum(total, len(cosines))
        self._leaves.current = found if self._leaves.current is None else self._leaves.current.merge_(found)

    def total(self) -> CosineSum | None:
        """The sum over this share; `None` without a token."""
        return self._leaves.total()

    def finish(self, shares: Iterable[CosineSum | None] | None = None) -> float:
        """The mean cosine of everything added so far, or of the totals of all shares in order."""
        found = self.mean(shares)
        assert found is not None, "calibration has at least one token"
        return found

    def mean(self, shares: Iterable[CosineSum | None] | None = None) -> float | None:
        """`finish`, and `None` where there was no token."""
        found = self.total() if shares is None else merged(shares)
        return None if found is None else found.total / found.count


@dataclass(frozen=True)
class BlockSums:
    """What one worker collects of a block, to be merged with the sums of the others.

    Attributes:
        inputs: by the first linear that reads them; `None` where the share has no token (of an expert).
        cosines: by sublayer: of the stream, and of the branch.
        shared, apart: as in `mgaa.statistics.statistics.BlockStatistics`.
    """

    inputs: dict[str, Moments | None]
    cosines: dict[str, tuple[CosineSum | None, CosineSum | None]]
    shared: dict[str, str]
    apart: dict[str, CosineSum | None] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write one safetensors file; scatters as their packed upper triangle."""
        tensors: dict[str, Tensor] = {}
        for key, moments in self.inputs.items():
            for each in fields(Moments) if moments is not None else ():
                value = getattr(moments, each.name)
                if each.name == "scatter":
                    value = value[tuple(torch.triu_indices(*value.shape))]
                tensors[f"{key}/{each.name}"] = torch.as_tensor(value).cpu().contiguous()
        notes = {
            "cosines": {name: [vars(each) for each in pair] for name, pair in self.cosines.items()},
            "inputs": list(self.inputs),
            "shared": self.shared,
            "apart": {name: None if each is None else vars(each) for name, each in self.apart.items()},
        }
        save_file(tensors, path, metadata={"notes": json.dumps(notes)})

    @staticmethod
    def load(path: Path, device: str = "cpu") -> "BlockSums":
        """Read what `save` wrote."""
        with safe_open(path, framework="pt", device=device) as file:
            notes = json.loads(file.metadata()["notes"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return BlockSums(
            {key: _unpacked(key, tensors) if f"{key}/count" in tensors else None for key in notes["inputs"]},
            {name: (CosineSum(**stream), CosineSum(**branch)) for name, (stream, branch) in notes["cosines"].items()},
            notes["shared"],
            {name: None if each is None else CosineSum(**each) for name, each in notes["apart"].items()},
        )


def _unpacked(key: str, tensors: Mapping[str, Tensor]) -> Moments:
    given = {each.name: tensors[f"{key}/{each.name}"] for each in fields(Moments)}
    width = len(given["mean"])
    scatter = given["scatter"].new_zeros(width, width)
    scatter[tuple(torch.triu_indices(width, width))] = given["scatter"]
    counts = given["group_counts"].cpu()
    return Moments(int(given["count"]), given["sums"], given["mean"], scatter, given["group_sums"], counts)
