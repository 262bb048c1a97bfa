"""The figure of answers shows the images that were asked about, every type in turn, and who was right; nothing is picked by the answers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy
import pytest
from matplotlib.colors import same_color

from tasks.figures.answers import RIGHT, SHOWN, WRONG, answers, shown
from tasks.figures.style import INK, save, style
from tests.support.seeing import picture

Given = list[dict[str, Any]]
TYPES = ("shape", "colour", "count")
IMAGES = 4


@pytest.fixture(autouse=True)
def styled() -> Iterator[None]:
    with style():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A section of the artifact `questions`, as far as the figure looks at it."""
    (tmp_path / "images").mkdir()
    for index in range(IMAGES):
        picture(index).save(tmp_path / "images" / f"{index}.png")
    return tmp_path


def said(count: int, right: Sequence[int] = (), types: Sequence[str] = TYPES) -> Given:
    """Answers to so many questions, each the next type and image; those at these places are right."""
    return [
        {
            "question": f"what is in image {index}?",
            "expected": f"thing {index}",
            "answer": f"thing {index}" if index in right else "nothing",
            "type": types[index % len(types)],
            "image": f"{index % IMAGES}.png",
            "correct": index in right,
        }
        for index in range(count)
    ]


def without_images(given: Given, *places: int) -> Given:
    return [{**each, "image": None} if index in places else each for index, each in enumerate(given)]


def test_every_type_has_its_turn_and_there_are_eight_at_most() -> None:
    given = said(30, types=[*10 * ["shape"], *10 * ["colour"], *10 * ["count"]])
    assert shown(given) == [0, 10, 20, 1, 11, 21, 2, 12]
    assert len(shown(said(7))) == 7
    assert shown(said(30, types=["shape"])) == list(range(SHOWN))
    assert shown([]) == []


def test_a_type_with_fewer_questions_leaves_its_place_to_the_others() -> None:
    assert shown(said(9, types=["shape", *8 * ["count"]])) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_questions_about_no_image_are_left_out() -> None:
    assert shown(without_images(said(6), 0, 3)) == [1, 2, 4, 5]
    assert shown(without_images(said(2), 0, 1)) == []


def test_what_is_drawn_does_not_depend_on_who_was_right() -> None:
    assert shown(said(30, right=range(0, 30, 7))) == shown(said(30)) == shown(said(30, right=range(30)))


def test_every_image_has_its_question_and_the_answers_of_every_model_in_its_colour(folder: Path) -> None:
    dense, ours = said(6, right=(0, 1, 2, 5)), said(6, right=(1, 4))
    axes = answers("scenes", folder, {"dense": dense, "mgaa": ours}).axes
    assert len(axes) == 6
    for index, axis in enumerate(axes):
        (drawn,) = axis.images
        assert numpy.array_equal(drawn.get_array(), numpy.asarray(picture(index % IMAGES)))
        *question, first, second = axis.texts
        assert " ".join(each.get_text() for each in question) == f"what is in image {index}? (thing {index})"
        assert (first.get_text(), second.get_text()) == (
            f"dense: {dense[index]['answer']}",
            f"MGAA: {ours[index]['answer']}",
        )
        assert all(same_color(each.get_color(), INK) for each in question)
        for text, given in ((first, dense), (second, ours)):
            assert same_color(text.get_color(), RIGHT if given[index]["correct"] else WRONG)


def test_right_and_wrong_are_different_colours() -> None:
    assert not same_color(RIGHT, WRONG)


def test_long_questions_and_answers_are_cut_to_the_width_of_an_image(folder: Path) -> None:
    given = said(1)
    given[0] |= {"question": "why is it so " * 30, "answer": "because of it " * 30}
    figure = answers("scenes", folder, {"dense": given, "mgaa": given})
    texts = [each.get_text() for each in figure.axes[0].texts]
    assert len(texts) == 4
    assert all(len(each) <= 30 for each in texts)
    assert [each.endswith("...") for each in texts] == [False, False, True, True]


@pytest.mark.parametrize("answer", ["", "\n", "a\nb", "cost $5 and $6", "x_1^2", "\\", "<b>&", "--"])
def test_whatever_a_model_says_is_written(folder: Path, tmp_path: Path, answer: str) -> None:
    given = [{**said(1)[0], "answer": answer}]
    save(answers("scenes", folder, {"dense": given, "mgaa": given}), tmp_path / "answers_scenes")
    assert ElementTree.parse(tmp_path / "answers_scenes.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize("count", [0, 1, 4, 5, 100])
def test_the_figure_can_be_drawn_for_any_number(folder: Path, count: int) -> None:
    figure = answers("scenes", folder, {"dense": said(count), "mgaa": said(count)})
    figure.draw_without_rendering()
    assert len(figure.axes) == min(count, SHOWN)
    width, height = figure.get_size_inches()
    assert width == 9
    assert height < 7
    boxes = [axis.get_position() for axis in figure.axes]
    assert all(0 <= box.x0 < box.x1 <= 1 and 0 <= box.y0 < box.y1 <= 1 for box in boxes)
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:index])


def test_equal_answers_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    given = {"dense": said(8, right=(1, 2)), "mgaa": said(8, right=(2,))}
    for name in ("a", "b"):
        save(answers("scenes", folder, given), tmp_path / name)
    for suffix in (".png", ".svg"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
