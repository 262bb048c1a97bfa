"""Draw docs/figures/architecture.svg: the steps of the last run and the artifacts between them, read from its manifests.

    python -m flows.compress && python docs/dataflow.py

A box is a cached step and the kind of artifact that it makes. Its line goes to the right, and a dot on it marks a step further down that
reads it. None of this is written here: steps, inputs, what runs once per block and what depends on the compression target are facts of the
run, so every run of the same flow gives the same figure (tests/flows/test_dataflow.py).
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import networkx as nx

from tasks.audit.lineage_figure import Box, boxes
from tasks.audit.references import derivation, resolve_target
from tasks.cache.artifact import Artifact, Store
from tasks.config.parameters import load_operation
from tasks.record.lineage import Node, ancestry
from tasks.record.run_record import KIND

FIGURE = Path(__file__).parent / "figures" / "architecture.svg"
ACROSS, DOWN, WIDE, TALL, LEFT, TOP = 84, 48, 122, 35, 24, 62
TARGET, BLOCK = "target", "block"
"""Parameters of a step: one that takes the first depends on the target, one that takes the second runs once per block."""
STYLE = """
  .paper { fill: #ffffff } text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #222222 }
  .kind { font-weight: 600 } .task, .note { font-size: 11.5px; fill: #5f6368 } .title { font-size: 16px; font-weight: 600 }
  .line { fill: none; stroke: #9aa0a6; stroke-width: 1.2 } .dot { fill: #5f6368 } .box { stroke-width: 1.2 }
  .once { fill: #e3f0fa; stroke: #0072b2 } .again { fill: #fdeedd; stroke: #d07a00 }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #16181b } text { fill: #e8eaed } .task, .note { fill: #a8adb3 } .line { stroke: #70757c } .dot { fill: #a8adb3 }
    .once { fill: #12344a; stroke: #56b4e9 } .again { fill: #46300f; stroke: #e69f00 }
  }
"""
LEGEND = (
    ("once", "once: the same for every compression target"),
    ("again", "again for every compression target"),
)
NOTES = (
    "A box is a Prefect task, cached by its inputs; a double frame: one task per decoder block.",
    "Its artifact is in the store; the dots on its line are the steps that read it.",
    "DVC sees three stages: data (texts), compress (all of it), vision (all of it for the vision-language model). MLflow sees one run.",
)


@dataclass(frozen=True)
class Flow:
    """The steps of a run in their order.

    Attributes:
        order: steps with the kind of artifact that they make, inputs first.
        readers: the readers of an artifact, by the step that makes it.
        again: steps that depend on the compression target.
        blockwise: steps that run once per block.
    """

    order: list[Box]
    readers: dict[Box, list[Box]]
    again: set[Box]
    blockwise: set[Box]


def flow_of(store: Store, run: Artifact) -> Flow:
    """Read the steps behind a run."""
    nodes = ancestry(store, [run], derivation(store, run))
    graph, _ = boxes({artifact: node for artifact, node in nodes.items() if artifact.kind != KIND})
    targeted = taking(nodes, TARGET)
    again = targeted | {each for box in targeted for each in nx.descendants(graph, box)}
    place = {box_of(nodes[made]): position for position, made in enumerate(nodes[run].all_inputs)}
    order = [*nx.lexicographical_topological_sort(graph, key=lambda box: (place.get(box, -1), box))]
    readers = {box: sorted(graph.successors(box), key=order.index) for box in order}
    return Flow(order, readers, again, taking(nodes, BLOCK))


def taking(nodes: Mapping[Artifact, Node], parameter: str) -> set[Box]:
    """The steps that take a parameter."""
    return {box_of(node) for node in nodes.values() if parameter in node.manifest.get("parameters", {})}


def box_of(node: Node) -> Box:
    """The step that made an artifact, and its kind."""
    return str(node.manifest.get("task", "?")), node.artifact.kind


def svg(flow: Flow) -> str:
    """Draw the figure."""
    width = LEFT * 2 + ACROSS * (len(flow.order) - 1) + WIDE
    height = TOP + DOWN * len(flow.order) + 6
    drawn = "\n".join([*title(), *lines(flow), *frames(flow), *legend(height)])
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
    paper = f'<rect class="paper" width="{width}" height="{height}" rx="8"/>'
    return f"{head}\n<style>{STYLE}</style>\n{paper}\n{drawn}\n</svg>\n"


def corner(index: int) -> tuple[int, int]:
    """The upper left corner of the box at an index."""
    return LEFT + ACROSS * index, TOP + DOWN * index


def lines(flow: Flow) -> Iterator[str]:
    """The line of every artifact, to the right and down to its readers."""
    for index, box in enumerate(flow.order):
        x, y = corner(index)
        middle = y + TALL // 2
        targets = [flow.order.index(reader) for reader in flow.readers[box]]
        if targets:
            yield f'<path class="line" d="M{x + WIDE} {middle}H{corner(max(targets))[0] + WIDE // 2}"/>'
    for index, box in enumerate(flow.order):
        x = corner(index)[0] + WIDE // 2
        makers = [place for place, maker in enumerate(flow.order) if box in flow.readers[maker]]
        if makers:
            yield f'<path class="line" d="M{x} {corner(min(makers))[1] + TALL // 2}V{corner(index)[1]}"/>'
        for maker in makers:
            yield f'<circle class="dot" cx="{x}" cy="{corner(maker)[1] + TALL // 2}" r="3.4"/>'


def frames(flow: Flow) -> Iterator[str]:
    """The boxes of the steps."""
    for index, box in enumerate(flow.order):
        (x, y), colour = corner(index), "again" if box in flow.again else "once"
        for shift in (4, 0) if box in flow.blockwise else (0,):
            frame = f'x="{x + shift}" y="{y - shift}" width="{WIDE}" height="{TALL}" rx="6"'
            yield f'<rect class="box {colour}" {frame}/>'
        yield text("kind", x + WIDE // 2, y + 15, box[1], "middle")
        yield text("task", x + WIDE // 2, y + 28, box[0], "middle")


def title() -> Iterator[str]:
    """The title of the figure."""
    yield text("title", LEFT, 30, "What flows, and who reads it")


def legend(height: int) -> Iterator[str]:
    """The legend, in the corner that no line crosses."""
    y = height - 24 - 20 * (len(LEGEND) + len(NOTES) - 1)
    for row, (colour, words) in enumerate(LEGEND):
        yield f'<rect class="box {colour}" x="{LEFT}" y="{y + 20 * row - 10}" width="16" height="12" rx="3"/>'
        yield text("note", LEFT + 24, y + 20 * row, words)
    for row, words in enumerate(NOTES, len(LEGEND)):
        yield text("note", LEFT, y + 20 * row, words)


def text(style: str, x: int, y: int, words: str, anchor: str = "start") -> str:
    """A line of text."""
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'


if __name__ == "__main__":
    given = load_operation(Path("params.yaml"), sys.argv[1:])
    store = Store(given.store_path, given.store.lock_timeout)
    FIGURE.write_text(svg(flow_of(store, resolve_target(given, store, "last"))), encoding="utf-8")
    print(f"The figure is in {FIGURE}")
