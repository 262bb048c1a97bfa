"""Figure of a sweep: loss against compression, a panel per factorizer, a curve per allocation, the Pareto front in the background."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from tasks.figures.style import PALE, colour_of, label_of, make_figure, panels

MARKERS = {"uniform": "o", "level1": "^", "level2": "s", "both": "D"}
BESIDE = 3
"""Maximum number of panels in a row."""
DODGE = 0.06
"""Offset between neighbouring curves, as a fraction of the distance between compressions, so that their bars do not overlap."""


def losses(table: Any) -> Any:
    """Plot the log-perplexity above dense against compression, with intervals on the same windows, and the Pareto front of all points.

    Args:
        table: of a sweep (`tasks.sweep.table.COLUMNS`).
    """
    measured = table[table.status == "measured"]
    groups = [*measured.groupby(["backbone", "factors", "factors_options"], sort=False)]
    beside = min(BESIDE, max(1, len(groups)))
    figure = make_figure(
        max(7.5, 0.6 + 3.1 * beside),
        1.1 + 2.6 * max(1, -(-len(groups) // beside)),
        "What compression costs, by factorizer and allocation",
        "Log-perplexity above dense. Bars: 95 % intervals on the same windows. Grey: the best of all panels.",
    )
    if not groups:
        figure.text(0.5, 0.4, "No point was measured.", ha="center")
        return figure
    axes = panels(figure, len(groups), beside)
    allocations = sort_allocations(table.allocation)
    for axis, ((backbone, factors, options), group) in zip(axes, groups, strict=True):
        draw_front(axis, measured[measured.backbone == backbone])
        draw_curves(axis, group, allocations)
        several = measured.backbone.nunique() > 1
        axis.set_title(" ".join(word for word in (backbone if several else "", factors, options) if word))
    set_scale(axes[0], measured)
    for axis in axes[-beside:]:
        axis.set_xlabel("fraction of linear parameters removed")
    figure.supylabel("log-perplexity above dense (nats)", fontsize=8.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def sort_allocations(allocations: Iterable[str]) -> list[str]:
    """Allocations in the order from none to both levels, each once."""
    known = [*MARKERS]
    return sorted({*allocations}, key=lambda name: (known.index(name.partition(" ")[0]), name))


def draw_front(axis: Any, points: Any) -> None:
    """Draw the points that no other point of the backbone beats in both loss and parameters removed."""
    best = points.loc[points.groupby("compression").above_dense.idxmin()].sort_values("compression", ascending=False)
    kept = best[best.above_dense <= best.above_dense.cummin()].sort_values("compression")
    look = {"color": PALE, "linewidth": 6, "marker": "o", "markersize": 6, "solid_capstyle": "round"}
    axis.plot(kept.compression, kept.above_dense, label="Pareto front of all", **look)


def draw_curves(axis: Any, points: Any, allocations: Sequence[str]) -> None:
    """Draw one curve per allocation, each slightly offset from the others."""
    targets = sorted({*points.compression})
    apart = DODGE * min((b - a for a, b in pairwise(targets)), default=0.1)
    for index, name in enumerate(allocations):
        shown = points[points.allocation == name].sort_values("compression")
        ends = shown.above_dense - shown.above_dense_low, shown.above_dense_high - shown.above_dense
        bars = [each.clip(lower=0.0) for each in ends]  # rounding can put an end of a narrow interval on the wrong side
        axis.errorbar(
            shown.compression + apart * (index - (len(allocations) - 1) / 2),
            shown.above_dense,
            yerr=None if shown.above_dense_low.isna().any() else bars,
            color=colour_of(name, allocations),
            label=label_of(name),
            marker=MARKERS[name.partition(" ")[0]],
            **{"linewidth": 1.0, "elinewidth": 1.0, "capsize": 2, "markersize": 3.5},
        )


def set_scale(axis: Any, points: Any) -> None:
    """Use a logarithmic scale if every interval lies above 0, otherwise one that is linear around 0."""
    lowest = points.above_dense_low.fillna(points.above_dense).min()
    if lowest > 0:
        axis.set_yscale("log")
    elif points.above_dense.abs().max() > 0:
        axis.set_yscale("asinh", linear_width=float(points.above_dense.abs().median()) or 1.0)
    axis.set_xticks(sorted({*points.compression}))
    axis.xaxis.set_major_formatter(lambda mark, _: f"{mark:g}")
