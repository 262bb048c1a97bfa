"""Report of a compression: the ratio of every sublayer, the rank or width of every matrix, and the unused budget."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgaa.allocation import file
from mgaa.allocation.latency import Latency, Seconds, total_seconds
from mgaa.ranks import Rank


@dataclass(frozen=True)
class SublayerReport:
    """Level 1 of one sublayer: mean cosine (`None` where it adds to no stream), requested ratio, reached ratio."""

    name: str
    cosine: float | None
    ratio: float
    reached: float


@dataclass(frozen=True)
class MatrixReport:
    """Level 2 of one matrix: its rank (`None` is dense), kept share of energy, relative output error, and its width if it was pruned.

    `error` is `||(W - W') X|| / ||W X||` in the factorizer's metric over the calibration tokens, before rounding: `sqrt(1 - energy)`; for a
    pruned matrix, in the metric of `awsvd`. `predicted_seconds` of a call come from a profile, under the latency objective. An `unreached`
    matrix is dense because no calibration token reached its expert.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    parameters: int
    energy: float
    error: float
    width: int | None = None
    predicted_seconds: Seconds | None = None
    unreached: bool = False


@dataclass(frozen=True)
class Report:
    """Report of the compression of a model.

    Attributes:
        compression: fraction of linear parameters removed.
        budget_left: parameters of the budget that were too few for any further rank step.
        latency: under the latency objective, the facts of the profile and the predicted seconds of all linears together.
    """

    compression: float
    linear_parameters: int
    budget_left: int
    sublayers: list[SublayerReport]
    matrices: list[MatrixReport]
    latency: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dictionaries, for JSON."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write the allocation to a file that the method `file` of `ratios` and `ranks` can read back (`mgaa.allocation`).

        Raises:
            UsageError: the path holds a file that this package did not write, or that has changed since.
            ResourceError: the file cannot be written.
        """
        sublayers, matrices = ([asdict(each) for each in reports] for reports in (self.sublayers, self.matrices))
        entry = {
            "compression": self.compression,
            "budget": self.linear_parameters + self.budget_left,
            "linear_parameters": self.linear_parameters,
            "slack": self.budget_left,
            **({} if self.latency is None else {"latency": self.latency}),
            "sublayers": {each.pop("name"): each for each in sublayers},
            "matrices": {x.pop("name"): dict(zip("mn", x.pop("shape"), strict=True)) | _entry(x) for x in matrices},
        }
        file.save_allocation(entry, path)


def _entry(matrix: dict[str, Any]) -> dict[str, Any]:
    """Drop optional fields that are empty: the width of pruned matrices, the prediction of a profile, the mark of unreached experts."""
    return {
        key: value
        for key, value in matrix.items()
        if key not in ("width", "predicted_seconds", "unreached") or value not in (None, False)
    }


def build_report(
    ranks: list[Rank],
    ratios: Mapping[str, float],
    cosines: Mapping[str, float],
    budget: int,
    latency: Latency | None = None,
) -> Report:
    """Build a report from ranks, ratios and cosines; `ratios` and `cosines` by sublayer."""
    predicted = {} if latency is None else {r.matrix.name: latency.seconds(r.matrix, r.rank) for r in ranks}
    dense: dict[str, int] = {}
    kept: dict[str, int] = {}
    for rank in ranks:
        dense[rank.matrix.sublayer] = dense.get(rank.matrix.sublayer, 0) + rank.matrix.parameters
        kept[rank.matrix.sublayer] = kept.get(rank.matrix.sublayer, 0) + rank.parameters
    return Report(
        compression=1 - sum(kept.values()) / sum(dense.values()),
        linear_parameters=sum(kept.values()),
        budget_left=budget - sum(kept.values()),
        sublayers=[SublayerReport(s, cosines.get(s), ratios[s], 1 - kept[s] / dense[s]) for s in ratios],
        matrices=[
            MatrixReport(
                r.matrix.name,
                (r.matrix.m, r.matrix.n),
                r.rank,
                r.parameters,
                r.energy,
                max(0.0, 1 - r.energy) ** 0.5,
                r.width,
                predicted.get(r.matrix.name),
                r.unreached,
            )
            for r in ranks
        ],
        latency=None
        if latency is None
        else {**latency.facts, "predicted_seconds": total_seconds(list(predicted.values()))},
    )
