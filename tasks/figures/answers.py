"""Some of the questions that a model that sees was asked, with their images and its answers before and after compression."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.figures.style import COLOURS, INK, label_of, sheet

SHOWN = 8
COLUMNS, WIDTH = 4, 30
SIDE, CELL = 1.8, 2.9
"""Inches of an image, and of an image with what is said below it."""
RIGHT, WRONG = COLOURS["level1"], COLOURS["uniform"]


def shown(answers: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which answers to draw: of every type in turn the next one with an image, so that nothing is picked by how it was answered."""
    by_type: dict[str, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer["image"] is not None:
            by_type.setdefault(answer["type"], []).append(index)
    turns = (
        group[turn]
        for turn in range(max(map(len, by_type.values()), default=0))
        for group in by_type.values()
        if turn < len(group)
    )
    return [index for index, _ in zip(turns, range(SHOWN), strict=False)]


def shown_as(text: str) -> str:
    """A text as it can be drawn: whatever a model says, without control characters, which no SVG may hold."""
    return "".join(each if each.isprintable() else " " for each in text)


def answers(name: str, folder: Path, given: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Images with their question, the answer that was expected, and that of every model, in green where it is right.

    Args:
        name: of the set of questions.
        folder: of its images.
        given: the answers of every model to the same questions in the same order, the dense one first.
    """
    from PIL import Image

    first = next(iter(given.values()))
    chosen = shown(first)
    rows = max(1, -(-len(chosen) // COLUMNS))
    height = 0.6 + CELL * rows
    figure = sheet(
        9.0,
        height,
        f"Questions of {name}",
        "Answers before and after compression, green where right; the first of every type.",
    )
    figure.set_layout_engine("none")  # axes stand where they are put
    for place, index in enumerate(chosen):
        row, column = divmod(place, COLUMNS)
        corner = 0.3 + 2.2 * column, height - 0.6 - CELL * row - SIDE  # in inches
        axis = figure.add_axes((corner[0] / 9.0, corner[1] / height, SIDE / 9.0, SIDE / height), in_layout=False)
        axis.axis("off")
        with Image.open(folder / "images" / first[index]["image"]) as image:
            axis.imshow(image)
        question = textwrap.wrap(shown_as(f"{first[index]['question']} ({first[index]['expected']})"), WIDTH)[:2]
        lines = [(line, INK) for line in question]
        for model, each in given.items():
            said = textwrap.shorten(f"{label_of(model)}: {shown_as(each[index]['answer'])}", WIDTH, placeholder="...")
            lines.append((said, RIGHT if each[index]["correct"] else WRONG))
        for line, (text, colour) in enumerate(lines):
            axis.text(
                0.5,
                -0.05 - 0.11 * line,
                text,
                transform=axis.transAxes,
                ha="center",
                va="top",
                color=colour,
                parse_math=False,
            )
    return figure
