"""Figures of a run, from plain tables to `matplotlib` figures; one function each.

They answer, in order: where did the parameters go (`ranks`), why there (`sublayers`), what did a parameter buy (`energies`), what did it
cost each layer (`errors`), and what did it cost the model (`sizes`). `allocations` are those of tasks/artifacts/allocation_table.py by
model, the run's method last; every figure works for 2 to 80 blocks. The experts of a mixture share a row.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.figures.allocation_rows import Allocation, choose_pair, kind_of, rows
from tasks.figures.style import (
    BLANK,
    COLOURS,
    GREY,
    INK,
    PALE,
    SUBLAYERS,
    colour_of,
    distance_scale,
    label_of,
    make_figure,
    panels,
    short_names,
    spread_labels,
)

Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]
"""Kept share of parameters and kept energy at every rank, by matrix."""

SEEN = {"image": (0, (4, 2)), "text": (0, (1, 1.5))}
"""Kinds of tokens whose cosines are also drawn separately, with their dashes."""

WIDE = 24
"""Number of blocks above which the numbers in a heat map are rotated."""

DARK = 0.67
"""Kept share above which a white number stands out better from its cell than a dark one."""


def ranks(allocations: Mapping[str, Allocation]) -> Any:
    """Plot the rank per matrix and block as a heat map of the share of parameters that is kept."""
    shown = choose_pair(allocations)
    names, blocks = rows(next(iter(shown.values())))
    beside = len(shown) if blocks <= 12 else 1
    cell = 0.5 if blocks <= WIDE else 0.2
    height = 0.26 if blocks <= WIDE else 0.42
    width = max(7.5, (0.8 + cell * blocks) * beside + 0.9)
    figure = make_figure(
        width,
        1.0 + (0.55 + height * len(names)) * -(-len(shown) // beside),
        "Where the parameters went",
        "Rank of every matrix, or width of a pruned one; the colour is the share of its parameters that it keeps.",
    )
    axes = figure.subplots(-(-len(shown) // beside), beside, sharex=True, sharey=True, squeeze=False)
    for axis, (model, allocation) in zip(axes.flat, shown.items(), strict=True):
        image = heat_map(axis, allocation, names, blocks)
        axis.set_title(f"{label_of(model)}: {allocation['linear_parameters']:,} linear parameters")
    for axis in axes[-1]:
        axis.set_xlabel("block")
    bar = figure.colorbar(image, ax=axes, aspect=25, pad=0.01, shrink=0.9, label="kept share of parameters")
    bar.outline.set_visible(False)
    return figure


def heat_map(axis: Any, allocation: Allocation, names: Sequence[str], blocks: int) -> Any:
    """Draw one panel of `ranks`."""
    from matplotlib.colors import LinearSegmentedColormap

    blues = ["#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b"]
    colours = LinearSegmentedColormap.from_list("kept", blues).with_extremes(over="#111111")
    kept = [[float("nan")] * blocks for _ in names]
    for matrix in allocation["matrices"].values():
        row, column = names.index(matrix["matrix"]), matrix["block"]
        share = matrix["parameters"] / (matrix["m"] * matrix["n"])
        size, dense = matrix["rank"] or matrix.get("width"), share == 1.0
        kept[row][column] = 2.0 if dense else share
        axis.text(
            column,
            row,
            "dense" if dense else str(size),
            ha="center",
            va="center",
            color="white" if dense or share > DARK else INK,
            fontsize=7 if blocks <= WIDE else 6,
            rotation=0 if blocks <= WIDE else 90,
        )
    image = axis.imshow(kept, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axis.set_yticks(range(len(names)), short_names(names).values())
    axis.set_xticks(range(0, blocks, 1 if blocks <= WIDE else 5))
    axis.set_xticks([x - 0.5 for x in range(1, blocks)], minor=True)
    axis.set_yticks([y - 0.5 for y in range(1, len(names))], minor=True)
    axis.grid(False)
    axis.grid(which="minor", color="white", linewidth=1.2, axis="both")
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    return image


def sublayers(allocations: Mapping[str, Allocation]) -> Any:
    """Plot the cosine of every sublayer, and the compression ratio that level 1 derived from it."""
    allocation = allocations[list(allocations)[-1]]
    _, blocks = rows(allocation)
    figure = make_figure(
        max(8.0, min(14.0, 2 + 0.25 * blocks)),
        5.0,
        "How far a sublayer turns the residual stream, and what it loses",
        "Above: mean cosine before and after it (logarithm of 1 - cosine). Below: its compression ratio; ring: as its ranks reach it.",
    )
    top, bottom = figure.subplots(2, 1, sharex=True)
    kinds = list(dict.fromkeys(name.partition(".")[2] for name in allocation["sublayers"]))
    for kind, colour, marker in zip(kinds, SUBLAYERS, "osD^", strict=False):
        found = {int(n.partition(".")[0]): s for n, s in allocation["sublayers"].items() if n.partition(".")[2] == kind}
        size = 4 if blocks <= WIDE else 2.5
        line = {"color": colour, "marker": marker, "markersize": size, "label": kind}
        ring = {
            "color": colour,
            "marker": marker,
            "markersize": size + 3.5,
            "fillstyle": "none",
            "markeredgewidth": 0.8,
        }
        turned = {block: s for block, s in found.items() if s["cosine"] is not None}  # a projector adds to no stream
        top.plot(list(turned), [s["cosine"] for s in turned.values()], **line)
        for seen, dashes in SEEN.items():
            if apart := {block: s[f"cosine_{seen}"] for block, s in turned.items() if f"cosine_{seen}" in s}:
                thin = {"color": colour, "linewidth": 0.9, "linestyle": dashes, "label": f"{kind}, {seen} tokens"}
                top.plot(list(apart), list(apart.values()), **thin)
        bottom.plot(list(found), [s["ratio"] for s in found.values()], **line)
        bottom.plot(list(found), [s["reached"] for s in found.values()], **ring, linestyle="none", clip_on=False)
    every = [s for s in allocation["sublayers"].values() if s["cosine"] is not None]
    distance_scale(
        top, [value for s in every for key, value in s.items() if key == "cosine" or key.startswith("cosine_")]
    )
    target = allocation["compression"]
    bottom.axhline(target, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    bottom.text(
        1.01, target, f"model {target:.3f}", transform=bottom.get_yaxis_transform(), va="center", color="#555555"
    )
    bottom.set_ylim(bottom=0)
    bottom.set(ylabel="compression ratio", xlabel="block")
    bottom.set_xlim(-0.5, blocks - 0.5)
    bottom.xaxis.get_major_locator().set_params(integer=True)
    top.set_ylabel("cosine")
    figure.align_ylabels()
    top.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def energies(allocations: Mapping[str, Allocation], curves: Curves) -> Any:
    """Plot the kept energy against the kept share of parameters, a panel per matrix type and a line per block."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    allocation = allocations[list(allocations)[-1]]
    names, blocks = rows(allocation)
    figure = make_figure(
        9.5,
        1.0 + 2.1 * -(-len(names) // 4),
        "What a parameter buys",
        "Kept energy of the output (logarithm of 1 - energy) against its cost. Lines: blocks. Dots: ranks or widths chosen (none: dense).",
    )
    axes = panels(figure, len(names), 4)
    depth = ScalarMappable(Normalize(0, max(1, blocks - 1)), colormaps["viridis_r"])
    for axis, name in zip(axes, names, strict=True):
        for key, matrix in allocation["matrices"].items():
            if kind_of(matrix["matrix"]) == name:
                colour = depth.to_rgba(matrix["block"])
                axis.plot(*curves[key], color=colour, linewidth=0.9)
                if not_dense(matrix):
                    share = matrix["parameters"] / (matrix["m"] * matrix["n"])
                    axis.plot(
                        share,
                        matrix["energy"],
                        "o",
                        color=colour,
                        markeredgecolor="white",
                        markeredgewidth=0.6,
                        zorder=3,
                    )
        axis.set_title(short_names(names)[name])
    distance_scale(axes[0], [0.0, *(each["energy"] for each in allocation["matrices"].values() if not_dense(each))])
    axes[0].set_xlim(0, 1)
    figure.supxlabel("kept share of parameters", fontsize=8.5)
    figure.supylabel("kept energy", fontsize=8.5)
    bar = figure.colorbar(depth, ax=axes, aspect=30, pad=0.01, label="block")
    bar.outline.set_visible(False)
    bar.locator.set_params(integer=True)
    return figure


def not_dense(matrix: Mapping[str, Any]) -> bool:
    """Tell whether a matrix was compressed."""
    return bool(matrix["parameters"] < matrix["m"] * matrix["n"])


def errors(allocations: Mapping[str, Allocation]) -> Any:
    """Plot the relative output error of every layer, the method against uniform."""
    shown = choose_pair(allocations)
    names, blocks = rows(next(iter(shown.values())))
    figure = make_figure(
        9.5,
        1.0 + 1.9 * -(-len(names) // 4),
        "What compression costs each layer",
        "Relative error of the layer's output on the calibration tokens, at equal parameters. 0: left dense.",
    )
    axes = panels(figure, len(names), 4)
    for axis, name in zip(axes, names, strict=True):
        for model, allocation in reversed(shown.items()):
            values = {m["block"]: m["error"] for m in allocation["matrices"].values() if m["matrix"] == name}
            axis.plot(
                list(values),
                list(values.values()),
                color=colour_of(model, list(allocations)),
                label=label_of(model),
                marker="o",
                markersize=3.5 if blocks <= WIDE else 0,
            )
        axis.set_title(short_names(names)[name])
    axes[0].set_ylim(0, 1.08 * max(m["error"] for a in shown.values() for m in a["matrices"].values()))
    axes[0].set_xlim(-0.5, blocks - 0.5)
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    figure.supxlabel("block", fontsize=8.5)
    figure.supylabel("relative error", fontsize=8.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="upper right", ncols=2)
    return figure


def sizes(models: Mapping[str, Mapping[str, float]]) -> Any:
    """Plot the perplexity against the size, every model with its standard error."""
    figure = make_figure(
        6.5,
        4.2,
        "What compression costs the model",
        "Perplexity on the evaluation text (lower is better) and MB of weights on disk. Bars: one standard error.",
    )
    axis = figure.subplots()
    names = list(models)
    megabytes = [models[name]["bytes"] / 1e6 for name in names]
    perplexities = [models[name]["perplexity"] for name in names]
    for name, x, y in zip(names, megabytes, perplexities, strict=True):
        bars = {"color": colour_of(name, names), "capsize": 2.5, "elinewidth": 1}
        axis.errorbar(x, y, yerr=models[name].get("perplexity_stderr"), fmt="o", markersize=6, **bars)
    axis.axhline(perplexities[0], color=PALE, linewidth=1, zorder=0)
    axis.margins(x=0.35, y=0.15)
    low, high = axis.get_ylim()
    places = [
        perplexities[0],
        *spread_labels(perplexities[1:], (high - low) * 0.055),
    ]  # the compressed ones are of one size
    for name, x, y, place in zip(names, megabytes, perplexities, places, strict=True):
        look = {"va": "center", "bbox": BLANK, "color": colour_of(name, names)}
        axis.annotate(f"{label_of(name)}  {y:.2f}", (x, place), (12, 0), textcoords="offset points", **look)
    axis.set_ylabel("perplexity")
    axis.set_xlabel("MB on disk")
    return figure


def recovery(curve: Mapping[str, Any]) -> Any:
    """Plot the losses of the recovery: of the training batches, and of the validation text, whose best state is kept."""
    points = curve["points"]
    figure = make_figure(
        7.0,
        3.9,
        "What recovery wins back",
        "Nats per token, of the batches (with dropout) and of the validation text. Ring: the state that is taken.",
    )
    axis = figure.subplots()
    for key, colour, marker in (("training", PALE, None), ("validation", COLOURS["mgaa"], "o")):
        known = [(point["step"], point[key]) for point in points if point[key] is not None]
        axis.plot(*zip(*known, strict=True), color=colour, marker=marker, markersize=3.5, label=key)
    best = next(point for point in points if point["step"] == curve["best"])
    ring = {"fillstyle": "none", "markersize": 9, "color": COLOURS["mgaa"], "linestyle": "none"}
    axis.plot(best["step"], best["validation"], "o", **ring)
    axis.set(xlabel="optimizer step", ylabel="loss")
    axis.legend(loc="upper right")
    return figure
