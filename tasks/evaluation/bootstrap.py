"""Significance of the difference between two models: intervals by the paired bootstrap over evaluation windows.

Windows are drawn with replacement, as many as there are, and every model is measured again on the same draw; the 2.5 and 97.5
percentiles over the draws are the interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13; for pairs of
models Koehn 2004, aclanthology.org/W04-3250). The log-perplexity of a draw is a ratio of sums, losses over scored tokens, as windows may
differ in length. Some windows are harder than others for all models alike; in a difference on the same draw this cancels, so its
interval is far narrower than those of the two models. Windows count as independent, and each interval stands for itself: of twenty
comparisons of equals, one excludes 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000
"""The ends of an interval then vary by about 1.5 % of its width between seeds."""
COVERED = (2.5, 97.5)
Sample = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with the interval that holds it in 95 of 100 repetitions; its ends are NaN where there is a single window."""

    value: float
    low: float
    high: float


class Bootstrap:
    """The draws of one set of windows; every model that was measured on them is measured again on the same ones."""

    def __init__(self, counts: Sequence[int], *, draws: int = DRAWS, seed: int = 0) -> None:
        self.counts = np.asarray(counts, dtype=np.float64)
        number = len(counts)
        generator = np.random.default_rng(seed)
        self.drawn = generator.multinomial(number, np.full(number, 1 / number), size=draws).astype(np.float64)
        self.tokens = self.drawn @ self.counts

    def nll(self, losses: ArrayLike) -> Interval:
        """Mean negative log-likelihood of a token, in nats; `losses` by window, each the sum over its scored tokens."""
        given = np.asarray(losses, dtype=np.float64)
        return self._interval(given.sum() / self.counts.sum(), self.drawn @ given / self.tokens)

    def difference(self, losses: ArrayLike, reference: ArrayLike) -> Interval:
        """`nll` less that of a reference on the same windows: below 0 is better."""
        return self.nll(np.asarray(losses, dtype=np.float64) - np.asarray(reference, dtype=np.float64))

    def _interval(self, value: Any, drawn: Sample) -> Interval:
        low, high = np.percentile(drawn, COVERED) if len(self.counts) > 1 else (np.nan, np.nan)
        return Interval(float(value), float(low), float(high))


def verdict(difference: Interval) -> str:
    """The verdict on a difference: `better` or `worse` where its interval excludes 0, else `undecided`."""
    if difference.high < 0:
        return "better"
    return "worse" if difference.low > 0 else "undecided"
