"""A byte model of order 5: what counting alone achieves on the test split, a yardstick for the backbone.

The probability of the next byte is the Witten-Bell interpolation (1991; method C of PPM) of the counts after its last 0 to 5 bytes:
`P_k(b) = (n(c b) + t(c) P_{k-1}(b)) / (n(c) + t(c))` for context c of k bytes, where n counts occurrences and t distinct successors, and
`P_{-1} = 1/256`; an unseen context passes `P_{k-1}` on. So it is a proper distribution for every context.

A context and its successor are at most six bytes, so they are one integer: counting is a sort of the training text and looking up is a
binary search, seconds for 20 MB where dictionaries take minutes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Sorted codes with their counts; a missing code counts 0."""

    codes: Codes
    counts: Counts

    def __call__(self, codes: Codes) -> Counts:
        """Count of each code."""
        place = np.minimum(np.searchsorted(self.codes, codes), len(self.codes) - 1)
        return np.where(self.codes[place] == codes, self.counts[place], 0)


@dataclass(frozen=True)
class ByteModel:
    """Counts for every order: of context and successor, of the context, and of its distinct successors."""

    grams: tuple[Table, ...]
    totals: tuple[Table, ...]
    types: tuple[Table, ...]

    def probabilities(self, text: bytes) -> NDArray[np.float64]:
        """Probability of each byte of `text` given those before it."""
        estimate = np.full(len(text), 1 / 256)
        for order, (gram, total, kinds) in enumerate(zip(self.grams, self.totals, self.types, strict=True)):
            codes = _codes(text, order)
            contexts = codes >> np.uint64(8)
            seen, distinct = total(contexts), kinds(contexts)
            mixed = (gram(codes) + distinct * estimate) / np.maximum(seen + distinct, 1)
            estimate = np.where(seen > 0, mixed, estimate)
        return estimate

    def bits(self, text: bytes) -> float:
        """Bits that an ideal coder needs for `text`."""
        return float(-np.log2(self.probabilities(text)).sum())


def fit(text: bytes, order: int = 5) -> ByteModel:
    """Fit a model of `text` with contexts of up to `order` bytes."""
    grams = tuple(_count(_codes(text, each)) for each in range(order + 1))
    contexts = [gram.codes >> np.uint64(8) for gram in grams]
    totals = tuple(_count(_codes(text, each) >> np.uint64(8)) for each in range(order + 1))
    return ByteModel(grams, totals, tuple(_count(each) for each in contexts))


def _codes(text: bytes, order: int) -> Codes:
    """Each byte with the `order` bytes before it as one integer, padded with zeros before the start."""
    padded = np.frombuffer(bytes(order) + text, dtype=np.uint8).astype(np.uint64)
    codes = np.zeros(len(text), dtype=np.uint64)
    for place in range(order + 1):
        codes = codes << np.uint64(8) | padded[place : place + len(text)]
    return codes


def _count(codes: Codes) -> Table:
    return Table(*np.unique(codes, return_counts=True))
