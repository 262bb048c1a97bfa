"""A few questions to a vision-language model, with their images and its answers before and after compression."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.figures.style import COLOURS, INK, label_of, make_figure

SHOWN = 8
COLUMNS, WIDTH = 4, 30
SIDE, CELL = 1.8, 2.9
"""Height in inches of an image, and of an image with the text below it."""
RIGHT, WRONG = COLOURS["level1"], COLOURS["uniform"]


def choose_answers(answers: Sequence[Mapping[str, Any]]) -> list[int]:
    """Choose the answers to draw: of every type in turn the next one with an image, so that the choice does not depend on the answers."""
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


def printable(text: str) -> str:
    """Make a text drawable: replace control characters, which a model may generate and no SVG may contain."""
    return "".join(each if each.isprintable() else " " for each in text)


def draw_answers(name: str, folder: Path, given: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Draw images with their question, the expected answer, and the answer of every model, green if it is correct.

    Args:
        name: name of the set of questions.
        folder: folder of its images.
        given: answers of every model to the same questions in the same order, the dense one first.
    """
    from PIL import Image

    first = next(iter(given.values()))
    chosen = choose_answers(first)
    rows = max(1, -(-len(chosen) // COLUMNS))
    height = 0.6 + CELL * rows
    figure = make_figure(
        9.0,
        height,
        f"Questions of {name}",
        "Answers before and after compression, green where right; the first of every type.",
    )
    figure.set_layout_engine("none")  # the axes are positioned by hand
    for place, index in enumerate(chosen):
        row, column = divmod(place, COLUMNS)
        corner = 0.3 + 2.2 * column, height - 0.6 - CELL * row - SIDE  # in inches
        axis = figure.add_axes((corner[0] / 9.0, corner[1] / height, SIDE / 9.0, SIDE / height), in_layout=False)
        axis.axis("off")
        with Image.open(folder / "images" / first[index]["image"]) as image:
            axis.imshow(image)
        question = textwrap.wrap(printable(f"{first[index]['question']} ({first[index]['expected']})"), WIDTH)[:2]
        lines = [(line, INK) for line in question]
        for model, each in given.items():
            said = textwrap.shorten(f"{label_of(model)}: {printable(each[index]['answer'])}", WIDTH, placeholder="...")
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
