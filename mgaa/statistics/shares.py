"""The order of the sums over calibration sequences: that of a binary tree, whatever the micro-batches and however many workers.

The sequences are cut into up to eight *parts* of consecutive ones. Inside a part they are added in order; the parts are then merged
pairwise, as the leaves of a binary tree. A worker that has a half, a quarter or an eighth of the sequences has whole branches of that tree,
so what several workers sum apart and merge in order has the same bits as the sum of one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from mgaa.errors import UsageError

PARTS = 8
"""The most parts that calibration sequences are cut into, and so the most shares; a power of two."""


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
            leaf = _merge(self._waiting.pop()[1], leaf)
            level += 1
        self._waiting.append((level, leaf))

    def total(self) -> Sum | None:
        """The sum of all leaves so far; nothing may be pushed behind it."""
        total: Sum | None = None
        while self._waiting:
            total = _merge(self._waiting.pop()[1], total)
        return total


def _merge(left: Sum | None, right: Sum | None) -> Sum | None:
    if left is None or right is None:
        return right if left is None else left
    together: Sum = left.merge_(right)
    return together


def merge_sums(sums: Iterable[Sum | None]) -> Sum | None:
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

    def move_to(self, sequence: int) -> None:
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
