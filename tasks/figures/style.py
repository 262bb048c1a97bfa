"""The common look of all figures, and how they are saved.

Colours are those of Okabe and Ito (2008, https://jfly.uni-koeln.de/color), which colour-blind readers can tell apart; depth runs through
one sequential map whose lightness rises monotonically. The font is the one that matplotlib ships, so that a figure is the same on every
machine, and files carry neither date nor version: equal data gives equal bytes. Figures are objects: nothing touches pyplot, whose
current figure is shared by all threads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DPI = 150
INK = "#222222"
GREY = "#8a8a8a"
PALE = "#d9d9d9"
MANY = (-0.9, -0.5, 0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
FEW = (0, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)
"""Ticks of a logarithmic distance to 1, for less and for more than three decades."""
BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
"""Background of a label that may lie on a line."""
COLOURS = {
    "dense": INK,
    "mgaa": "#0072b2",
    "lorap": "#0072b2",
    "bolaco": "#e69f00",
    "random": "#999999",
    "unrecovered": "#7f7f7f",
    "uniform": "#d55e00",
    "level1": "#009e73",
    "level2": "#cc79a7",
}
COLOURS["both"] = COLOURS["mgaa"]
SPARE = ("#7f7f7f", "#aa4499", "#117733", "#882255")
SUBLAYERS = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7")

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "svg.hashsalt": "mgaa",
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Use the common style for drawing and saving inside this block."""
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "agg"}):
        yield


def make_figure(width: float, height: float, title: str, subtitle: str) -> Any:
    """Create an empty figure of this size in inches, with a title and one line that says how to read it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.5 / height))  # type: ignore[union-attr, call-arg]
    figure.text(0.08 / width, 1 - 0.07 / height, title, fontsize=11, fontweight="bold", va="top")
    figure.text(0.08 / width, 1 - 0.28 / height, subtitle, fontsize=8.5, color="#555555", va="top")
    return figure


def panels(figure: Any, count: int, columns: int) -> list[Any]:
    """Create `count` axes in rows of `columns` that share both scales."""
    rows = -(-count // columns)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for empty in axes[count:]:
        empty.remove()
    for above in axes[count - columns : count]:  # the lowest of each column carries the labels of the shared scale
        above.tick_params(labelbottom=True)
    return axes[:count]


def save_figure(figure: Any, path: Path) -> None:
    """Write `path.png` and `path.svg`; equal drawings give equal bytes.

    The layout is solved once for both: matplotlib would solve it for each and draw everything once more to do so, half of the total time.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    figure.savefig(path.with_suffix(".png"), dpi=DPI, metadata={"Software": None})
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})


def colour_of(model: str, others: Sequence[str]) -> str:
    """Colour of a model; a known model always has the same."""
    unknown = [name for name in others if name not in COLOURS]
    return COLOURS[model] if model in COLOURS else SPARE[unknown.index(model) % len(SPARE)]


def label_of(model: str) -> str:
    """Label of a model in figures and tables."""
    known = {
        "mgaa": "MGAA",
        "lorap": "LoRAP",
        "bolaco": "Bolaco",
        "random": "random search",
        "unrecovered": "before recovery",
        "level1": "level 1 only",
        "level2": "level 2 only",
        "both": "both levels",
    }
    return known.get(model, model)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Shorten `self_attn.q_proj` to `q` if all short names differ."""
    short = {name: name.rpartition(".")[2].removesuffix("_proj") for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def distance_scale(axis: Any, values: Sequence[float]) -> None:
    """Set a scale on which 0.98 and 0.99 are as far apart as 0 and 0.5: the logarithm of the distance to 1, over `values` below 1."""
    import numpy

    axis.set_yscale(
        "function",
        functions=(
            lambda value: -numpy.log(numpy.maximum(1 - numpy.asarray(value), 1e-7)),
            lambda place: 1 - numpy.exp(-numpy.asarray(place)),
        ),
    )
    low, high = (1 - min(values)) * 1.25, max(1 - max(values), 1e-5) / 1.5
    axis.set_ylim(1 - low, 1 - high)
    marks = FEW if low / high > 1000 else MANY
    axis.set_yticks([mark for mark in marks if 1 - low <= mark <= 1 - high])
    axis.set_yticks([], minor=True)
    axis.yaxis.set_major_formatter(lambda mark, _: f"{mark:g}")


def spread_labels(positions: Sequence[float], gap: float) -> list[float]:
    """Move positions apart to at least `gap`, as little as neighbours allow; for labels next to points."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    groups: list[tuple[list[int], float]] = []
    for index in order:
        members, centre = [index], positions[index]
        while groups and groups[-1][1] + gap * (len(groups[-1][0]) + len(members)) / 2 > centre:
            above = groups.pop()[0]
            members = above + members
            centre = sum(positions[member] for member in members) / len(members)
        groups.append((members, centre))
    placed = list(positions)
    for members, centre in groups:
        for rank, member in enumerate(members):
            placed[member] = centre + gap * (rank - (len(members) - 1) / 2)
    return placed
