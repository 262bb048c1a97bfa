"""Order of the sums over calibration sequences: that of a binary tree, whatever the micro-batches and the number of workers.

The sequences are cut into up to eight *parts* of consecutive ones. Inside a part they are added in order; the parts are then merged
pairwise, as the leaves of a binary tree. A worker with a half, a quarter or an eighth of the sequences has whole branches of that tree, so
the merged sums of several workers have the same bits as the sum of one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from mgaa.errors import UsageError

PARTS = 8
"""Maximum number of parts of the calibration sequences, and so of shares; a power of two."""


@dataclass(frozen=True)
class Share:
    """Sequences of one of several workers: share `index` of `of` equal ones.

    Raises:
        UsageError: `of` is not a power of two, or more than the sequences or `PARTS` allow.
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
        """Number of parts into which the sequences of all shares are cut."""
        return 1 << (min(self.sequences, PARTS).bit_length() - 1)

    @property
    def parts(self) -> range:
        """Parts of this share."""
        size = self.all_parts // self.of
        return range(self.index * size, (self.index + 1) * size)

    def part_of(self, sequence: int) -> int:
        """Return the part of a sequence."""
        return sequence * self.all_parts // self.sequences

    def first_of(self, part: int) -> int:
        """Return the first sequence of a part; one past the last part, the number of sequences."""
        return -(-part * self.sequences // self.all_parts)

    def batches(self, size: int) -> list[range]:
        """Return the sequences of this share in micro-batches, none of which crosses the end of a part."""
        return [
            range(first, min(first + size, self.first_of(part + 1)))
            for part in self.parts
            for first in range(self.first_of(part), self.first_of(part + 1), size)
        ]


@runtime_checkable
class Mergeable(Protocol):
    """Sums over some tokens that can absorb the sums over later tokens."""

    def merge_(self, other: Any) -> Any:
        """Add `other`, of the same type, in place, and return `self`."""


Sum = TypeVar("Sum", bound=Mergeable)


class Pairwise(Generic[Sum]):
    """Merges sums, given in order, as the leaves of a binary tree; `None` is a leaf without tokens."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, Sum | None]] = []  # level and sum of the complete branches, leftmost first

    def push(self, leaf: Sum | None) -> None:
        """Add the next leaf."""
        level = 0
        while self._waiting and self._waiting[-1][0] == level:
            leaf = _merge(self._waiting.pop()[1], leaf)
            level += 1
        self._waiting.append((level, leaf))

    def total(self) -> Sum | None:
        """Return the sum of all leaves so far; no leaf may be added afterwards."""
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
    """Merge the sums of all shares, in order, as one worker would; the arguments are consumed."""
    tree = Pairwise[Sum]()
    for leaf in sums:
        tree.push(leaf)
    return tree.total()


class Leaves(Generic[Sum]):
    """Sums of a share, part by part; `current` is that of the current part, `None` where it has no token yet."""

    def __init__(self, share: Share) -> None:
        self._share, self._part, self._tree = share, share.parts[0], Pairwise[Sum]()
        self.current: Sum | None = None

    def move_to(self, sequence: int) -> None:
        """Advance to the part of a sequence."""
        self._until(self._share.part_of(sequence))

    def total(self) -> Sum | None:
        """Return the sum of all parts; `None` without a token."""
        self._until(self._share.parts[-1] + 1)
        return self._tree.total()

    def _until(self, part: int) -> None:
        while self._part < part:
            self._tree.push(self.current)
            self._part, self.current = self._part + 1, None
