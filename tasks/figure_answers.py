"""Some of the questions that a model that sees was asked, with their images and its answers before and after compression."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.figure_style import COLOURS, label_of, sheet

SHOWN = 8
COLUMNS = 4
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
    rows = -(-len(chosen) // COLUMNS)
    figure = sheet(
        9.0,
        0.9 + 2.3 * rows,
        f"Questions of {name}",
        "The answers before and after compression; the first of every type.",
    )
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axis in axes:
        axis.axis("off")
    for axis, index in zip(figure.axes, chosen, strict=False):
        with Image.open(folder / first[index]["image"]) as image:
            axis.imshow(image)
        lines = [(f"{first[index]['question']}  ({first[index]['expected']})", "black")]
        for model, each in given.items():
            lines.append((f"{label_of(model)}: {each[index]['answer']}", RIGHT if each[index]["correct"] else WRONG))
        for line, (text, colour) in enumerate(lines):
            axis.text(
                0.5, -0.06 - 0.12 * line, text[:44], transform=axis.transAxes, ha="center", va="top", color=colour
            )
    return figure
