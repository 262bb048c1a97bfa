"""The ancestry of a result as a figure: a box per task and kind, from the sources (left) to the result (right).

The box of a task stands for all artifacts that it made (one for each block or model); an arrow means "was made from". A box lies in the
column of its longest path from the left, so that every arrow points to the right.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import networkx as nx

from mgaa.errors import UsageError
from tasks.audit.lineage_view import SHORT
from tasks.audit.references import derivation
from tasks.cache.artifact import Artifact, Store
from tasks.cache.atomic import place_files
from tasks.figures.style import GREY, INK, figure_style, make_figure, save_figure
from tasks.record.lineage import Node, ancestry

Box = tuple[str, str]
"""Task and kind."""


def draw(store: Store, root: Artifact, path: Path) -> None:
    """Draw the figure and write it as `path.svg` and `path.png`.

    Raises:
        UsageError: the path ends otherwise.
    """
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"The figure is {str(path)!r}: expected a path that ends in .svg or .png; both are written.")
    nodes = ancestry(store, [root], derivation(store, root))
    graph, counts = boxes(nodes)
    columns = [sorted(column) for column in nx.topological_generations(graph)]
    tallest = max(map(len, columns))
    with figure_style():
        width, height = max(4.0, 1.45 * len(columns)), max(2.2, 0.75 * tallest + 0.9)
        figure = make_figure(
            width, height, f"Ancestry of {root}", "arrow: was made from; x: number of artifacts of a task"
        )
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-tallest / 2, tallest / 2))
        places = {
            box: (x, (len(column) - 1) / 2 - y) for x, column in enumerate(columns) for y, box in enumerate(column)
        }
        for one, other in graph.edges:
            axes.annotate(
                "",
                places[other],
                places[one],
                arrowprops={"arrowstyle": "->", "color": GREY, "shrinkA": 22, "shrinkB": 22, "lw": 0.8},
            )
        for box, (x, y) in places.items():
            label = f"{box[1]}{f' x {counts[box]}' if counts[box] > 1 else ''}\n{box[0]}\n{newest(nodes, box)}"
            frame = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": INK, "linewidth": 0.8}
            axes.text(x, y, label, ha="center", va="center", fontsize=6.5, bbox=frame)
        with place_files(path.parent) as out:
            save_figure(figure, out / path.name)


def boxes(nodes: Mapping[Artifact, Node]) -> tuple["nx.DiGraph[Box]", Counter[Box]]:
    """Graph of tasks and kinds, and the number of artifacts that each box stands for."""
    named = {artifact: (str(node.manifest.get("task", "?")), artifact.kind) for artifact, node in nodes.items()}
    graph: nx.DiGraph[Box] = nx.DiGraph()
    graph.add_nodes_from(sorted({*named.values()}))
    for artifact, node in nodes.items():
        parents = {named[each] for those in node.inputs.values() for each in those}
        graph.add_edges_from((box, named[artifact]) for box in sorted(parents) if box != named[artifact])
    return graph, Counter(named.values())


def newest(nodes: Mapping[Artifact, Node], box: Box) -> str:
    """Short digest of a box, or of the first of its artifacts."""
    return next(
        artifact.digest[:SHORT]
        for artifact, node in nodes.items()
        if (str(node.manifest.get("task", "?")), artifact.kind) == box
    )
