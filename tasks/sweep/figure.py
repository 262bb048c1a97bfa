"""The figure of a sweep: loss against compression, a panel per factorizer, a curve per allocation, the best of all of them behind."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from tasks.figures.style import PALE, colour_of, label_of, panels, sheet

MARKERS = {"uniform": "o", "level1": "^", "level2": "s", "both": "D"}
BESIDE = 3
"""Panels in a row."""
DODGE = 0.06
"""Neighbouring curves stand so far apart, as a share of the distance between compressions, that their bars can be told apart."""


def losses(table: Any) -> Any:
    """Log-perplexity above dense against compression, with intervals on the same windows, and the Pareto front of all points.

    Args:
        table: of a sweep (`tasks.sweep.table.COLUMNS`).
    """
    measured = table[table.status == "measured"]
    groups = [*measured.groupby(["backbone", "factors", "factors_options"], sort=False)]
    beside = min(BESIDE, max(1, len(groups)))
    figure = sheet(
        max(7.5, 0.6 + 3.1 * beside),
        1.1 + 2.6 * max(1, -(-len(groups) // beside)),
        "What compression costs, by factorizer and allocation",
        "Log-perplexity above dense. Bars: 95 % intervals on the same windows. Grey: the best of all panels.",
    )
    if not groups:
        figure.text(0.5, 0.4, "No point was measured.", ha="center")
        return figure
    axes = panels(figure, len(groups), beside)
    allocations = in_order(table.allocation)
    for axis, ((backbone, factors, options), group) in zip(axes, groups, strict=True):
        draw_front(axis, measured[measured.backbone == backbone])
        draw_curves(axis, group, allocations)
        several = measured.backbone.nunique() > 1
        axis.set_title(" ".join(word for word in (backbone if several else "", factors, options) if word))
    scale(axes[0], measured)
    for axis in axes[-beside:]:
        axis.set_xlabel("fraction of linear parameters removed")
    figure.supylabel("log-perplexity above dense (nats)", fontsize=8.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def in_order(allocations: Iterable[str]) -> list[str]:
    """Allocations from none to both levels, each once."""
    known = [*MARKERS]
    return sorted({*allocations}, key=lambda name: (known.index(name.partition(" ")[0]), name))


def draw_front(axis: Any, points: Any) -> None:
    """The points that no other of the backbone beats in both, loss and parameters removed."""
    best = points.loc[points.groupby("compression").above_dense.idxmin()].sort_values("compression", ascending=False)
    kept = best[best.above_dense <= best.above_dense.cummin()].sort_values("compression")
    look = {"color": PALE, "linewidth": 6, "marker": "o", "markersize": 6, "solid_capstyle": "round"}
    axis.plot(kept.compression, kept.above_dense, label="Pareto front of all", **look)


def draw_curves(axis: Any, points: Any, allocations: Sequence[str]) -> None:
    """One curve per allocation, each a little beside the others."""
    targets = sorted({*points.compression})
    apart = DODGE * min((b - a for a, b in pairwise(targets)), default=0.1)
    for index, name in enumerate(allocations):
        shown = points[points.allocation == name].sort_values("compression")
        ends = shown.above_dense - shown.above_dense_low, shown.above_dense_high - shown.above_dense
        bars = [each.clip(lower=0.0) for each in ends]  # rounding can put an end of a narrow interval on the other side
        axis.errorbar(
            shown.compression + apart * (index - (len(allocations) - 1) / 2),
            shown.above_dense,
            yerr=None if shown.above_dense_low.isna().any() else bars,
            color=colour_of(name, allocations),
            label=label_of(name),
            marker=MARKERS[name.partition(" ")[0]],
            **{"linewidth": 1.0, "elinewidth": 1.0, "capsize": 2, "markersize": 3.5},
        )


def scale(axis: Any, points: Any) -> None:
    """Decades where every interval lies above 0; around 0 a linear part."""
    lowest = points.above_dense_low.fillna(points.above_dense).min()
    if lowest > 0:
        axis.set_yscale("log")
    elif points.above_dense.abs().max() > 0:
        axis.set_yscale("asinh", linear_width=float(points.above_dense.abs().median()) or 1.0)
    axis.set_xticks(sorted({*points.compression}))
    axis.xaxis.set_major_formatter(lambda mark, _: f"{mark:g}")
