"""Figure of searches: best value so far against the number of evaluations, one curve per kind of search, over all its seeds."""

import math
from typing import Any

from tasks.figures.style import GREY, label_of, make_figure

LOOKS: dict[tuple[str, str], dict[str, Any]] = {
    ("random", "random"): {"color": "#8a8a8a", "linestyle": (0, (4, 2))},
    ("gp", "random"): {"color": "#0072b2"},
    ("gp", "mgaa"): {"color": "#d55e00"},
}
"""Colour and line style by method and first trial."""


def best_so_far(trials: Any, mgaa: float | None) -> Any:
    """Plot the mean over seeds of the least objective up to each evaluation, with its 95 % confidence interval; one panel per number of
    groups.

    Args:
        trials: the table of trials (`tasks.search.publish.COLUMNS`).
        mgaa: objective of MGAA, if it could be measured.
    """
    groups = sorted({*trials.groups})
    figure = make_figure(
        max(6.5, 4.2 * len(groups)),
        3.9,
        "What a search finds, by the number of evaluations",
        "Least objective so far, mean over seeds; bands: 95 % confidence interval of the mean. MGAA evaluates nothing.",
    )
    axes = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axis, count in zip(axes, groups, strict=True):
        for (method, start), curves in trials[trials.groups == count].groupby(["method", "start"], sort=False):
            draw_curve(axis, curves, label_search(method, start), LOOKS.get((method, start), {}))
        if mgaa is not None:
            axis.axhline(mgaa, color=GREY, linewidth=1)
            axis.text(
                0.99,
                mgaa,
                label_of("mgaa"),
                transform=axis.get_yaxis_transform(),
                ha="right",
                va="bottom",
                color="#555555",
            )
        axis.set_title(
            "one share per type" if count == 1 else f"one share per type and group of blocks, {count} groups"
        )
        axis.set_xlabel("evaluations")
        axis.set_xlim(1, max(2, trials.trial.max() + 1))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(loc="upper right")
    axes[0].set_ylabel("objective: perplexity + weighted divergence")
    low, high = visible_range(trials, mgaa)
    axes[0].set_ylim(low, high)
    return figure


def label_search(method: str, start: str) -> str:
    """Label of a kind of search."""
    if method == "random":
        return "random search"
    return "Gaussian process" if start == "random" else "Gaussian process, MGAA first"


def draw_curve(axis: Any, curves: Any, label: str, look: dict[str, Any]) -> None:
    """Draw one curve with its band."""
    from scipy.stats import t

    table = curves.pivot_table(index="trial", columns="seed", values="best")
    mean, number = table.mean(axis=1), table.shape[1]
    evaluations = [trial + 1 for trial in table.index]
    text = label if number == 1 else f"{label}, {number} seeds"
    axis.plot(evaluations, mean, label=text, drawstyle="steps-post", **look)
    if number > 1:
        half = t.ppf(0.975, number - 1) * table.std(axis=1) / math.sqrt(number)
        axis.fill_between(
            evaluations, mean - half, mean + half, step="post", alpha=0.15, color=look.get("color"), linewidth=0
        )


def visible_range(trials: Any, mgaa: float | None) -> tuple[float, float]:
    """Range of the scale in which searches differ; the first trials may lie far above."""
    finite = trials[trials.best < float("inf")]
    third = finite[finite.trial >= min(3, finite.trial.max())].best
    marks = [] if mgaa is None else [mgaa]
    low, high = min([finite.best.min(), *marks]), max([third.max(), *marks])
    room = 0.06 * (high - low or 1.0)
    return low - room, high + room
