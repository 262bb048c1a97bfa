"""Drawn scenes: the same every time, splits without a common scene, answers that the pixels confirm, balance; easy-VQA in the same form."""

import json
import math
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from demo import easy_vqa, scenes
from demo.scenes import CAPTION, COLOURS, PLACES, SHAPES, TYPES, Example, Thing
from mgaa.errors import InputError, UsageError

SPLITS = ("train", "calibration", "validation", "test")


def content(examples: list[Example]) -> list[tuple[bytes, str, str, str]]:
    return [(each.image.tobytes(), each.question, each.answer, each.type) for each in examples]


def seen(image: Image.Image) -> list[tuple[str, int, float]]:
    """Colour, cell and filled share of the bounding box of every thing, from the pixels alone."""
    values = np.asarray(image).astype(int)
    background = Counter(map(tuple, values.reshape(-1, 3))).most_common(1)[0][0]
    found = []
    for pixels in pieces(np.abs(values - background).max(-1) > 0):
        low, high = pixels.min(0), pixels.max(0)
        row, column = ((low + high + 1) / 2 * 3 / 64).astype(int)
        colour = Counter(tuple(values[place[0], place[1]]) for place in pixels).most_common(1)[0][0]
        (name,) = [name for name, value in COLOURS.items() if np.abs(np.subtract(value, colour)).max() <= 20]
        covered = np.abs(values[tuple(pixels.T)] - background).sum() / np.abs(np.subtract(colour, background)).sum()
        found.append((name, int(row * 3 + column), float(covered / np.prod(high - low + 1))))
    return found


def pieces(mask: np.ndarray) -> list[np.ndarray]:
    """Connected pixels (8 neighbours), as coordinates."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    found = []
    while left:
        piece, border = [], [left.pop()]
        while border:
            row, column = border.pop()
            piece.append((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            border += near
        found.append(np.array(piece))
    return found


@pytest.fixture(scope="module")
def test_examples() -> list[Example]:
    return scenes.examples("test", 600)


def test_examples_repeat_with_the_seed_and_differ_without() -> None:
    first = content(scenes.examples("test", 40))
    assert content(scenes.examples("test", 40)) == first
    assert content(scenes.examples("test", 40, seed=1)) != first
    assert content(scenes.examples("train", 40)) != first


def test_no_set_of_things_is_in_two_splits() -> None:
    drawn = {split: set(islice(scenes.scenes(split, Random(1)), 1500)) for split in SPLITS}
    for split in SPLITS:
        assert all(scenes.split_of(each) == split for each in drawn[split])
        assert not drawn[split] & set().union(*(drawn[other] for other in SPLITS if other != split))


def test_the_split_does_not_depend_on_the_order_of_things() -> None:
    pair = (Thing(0, "ring", "red"), Thing(8, "cross", "teal"))
    assert scenes.split_of(pair) == scenes.split_of(pair[::-1])


@pytest.mark.parametrize("seed", range(3))
def test_the_pixels_show_the_colours_and_cells_of_the_scene(seed: int) -> None:
    random = Random(seed)
    for scene in islice(scenes.scenes("train", random), 60):
        image = scenes.draw(scene, random)
        assert (image.size, image.mode) == ((64, 64), "RGB")
        assert sorted((cell, colour) for colour, cell, _ in seen(image)) == [(each.cell, each.colour) for each in scene]


def test_the_pixels_show_the_shapes() -> None:
    """The share of the bounding box that a shape fills is known from geometry."""
    thin = 0.36
    expected = {
        "circle": math.pi / 4,
        "rectangle": 0.95,  # the border of the box is covered in part
        "triangle": 0.5,
        "cross": 2 * thin - thin**2,
        "diamond": 0.5,
        "ring": math.pi / 4 * (1 - (1 - thin) ** 2),
    }
    for shape in SHAPES:
        shares = []
        for number in range(30):
            ((_, _, share),) = seen(scenes.draw((Thing(4, shape, "black"),), Random(number)))
            shares.append(share)
        assert np.mean(shares) == pytest.approx(expected[shape], abs=0.1), shape


@pytest.mark.slow
def test_every_answer_about_colour_count_position_and_presence_follows_from_the_pixels(
    test_examples: list[Example],
) -> None:
    asked = Counter[str]()
    for each in test_examples:
        things = seen(each.image)
        colours, cells = [colour for colour, _, _ in things], [cell for _, cell, _ in things]
        place = next((name for name in sorted(PLACES, key=len, reverse=True) if name in each.question), None)
        colour = next((name for name in COLOURS if re.search(rf"\b{name}\b", each.question)), None)
        shape = next((name for name in SHAPES if name in each.question), None)
        negated = re.search(r"\b(not|no|empty)\b", each.question) is not None
        if each.type == "colour" and place:
            assert each.answer == colours[cells.index(PLACES.index(place))]
        elif each.type == "count" and not shape:
            assert each.answer == str(colours.count(colour) if colour else len(things))
        elif each.type == "position" and colour and not shape:
            assert each.answer == PLACES[cells[colours.index(colour)]]
        elif each.type == "presence" and not shape:
            truth = colour in colours if colour else PLACES.index(str(place)) in cells
            assert each.answer == ("yes" if truth != negated else "no")
        else:
            continue
        asked[each.type] += 1
    assert all(asked[kind] >= 15 for kind in ("colour", "count", "position", "presence")), asked


def test_questions_about_shapes_agree_with_the_scene() -> None:
    scene = (Thing(0, "ring", "red"), Thing(4, "ring", "teal"), Thing(8, "cross", "red"))
    random = Random(0)

    def pairs(kind: str) -> set[tuple[str, str]]:
        return {pair for _ in range(400) for group in scenes.questions(scene, kind, random) for pair in group}

    assert ("what is the teal shape?", "ring") in pairs("shape")
    assert not any("red" in question for question, _ in pairs("shape"))
    assert ("what color is the cross?", "red") in pairs("colour")
    assert ("how many rings are there?", "2") in pairs("count")
    assert ("how many crosses are there?", "1") in pairs("count")
    assert ("where is the red ring?", "top left") in pairs("position")
    assert {
        ("is there a red cross?", "yes"),
        ("is there a teal cross?", "no"),
        ("is no circle present?", "yes"),
    } <= pairs("presence")
    assert {answer for _, answer in pairs(CAPTION)} == {
        "a red ring in the top left, a teal ring in the centre and a red cross in the bottom right."
    }


def test_types_and_answers_come_in_equal_shares(test_examples: list[Example]) -> None:
    assert set(Counter(each.type for each in test_examples).values()) == {600 // len(TYPES)}
    for kind in TYPES:
        counts = Counter(each.answer for each in test_examples if each.type == kind)
        assert set(counts) == set(scenes.ANSWERS[kind])
        assert max(counts.values()) - min(counts.values()) <= 1


def test_presence_is_balanced_for_every_polarity(test_examples: list[Example]) -> None:
    presence = scenes.examples("train", 1000, types=["presence"])
    negated = [each for each in presence if re.search(r"\b(not|no|empty)\b", each.question)]
    assert 400 <= len(negated) <= 600
    assert 0.4 <= sum(each.answer == "yes" for each in negated) / len(negated) <= 0.6


def test_the_wording_includes_that_of_easy_vqa() -> None:
    wording = {question for each in scenes._WORDS.values() for question in each}
    assert {"what shape does the image contain?", "is no {noun} present?", "what color is the {shape}?"} <= wording


def test_an_unknown_split_or_type_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Got split 'dev', expected one of"):
        scenes.examples("dev", 1)
    with pytest.raises(UsageError, match=r"Got types \['size'\] .* expected types among"):
        scenes.examples("test", 1, types=["size"])


def test_the_written_file_names_each_image_once(tmp_path: Path) -> None:
    (one, other) = scenes.examples("test", 2)
    again = Example(one.image.copy(), "describe the image.", "nothing.", CAPTION)
    path = scenes.write([one, other, again], tmp_path)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["image"] for each in records] == ["images/00000.png", "images/00001.png", "images/00000.png"]
    assert len(list((tmp_path / "images").iterdir())) == 2
    assert records[1] == {
        "image": records[1]["image"],
        "question": other.question,
        "answer": other.answer,
        "type": other.type,
    }
    with Image.open(tmp_path / records[1]["image"]) as stored:
        assert stored.tobytes() == other.image.tobytes()


@pytest.fixture
def easy(tmp_path: Path) -> Path:
    folder = tmp_path / "easy"
    (folder / "images").mkdir(parents=True)
    for number in range(2):
        Image.new("RGBA", (64, 64), (number, 0, 0, 255)).save(folder / "images" / f"{number}.png")
    questions = [
        ["what is the blue shape?", "circle", 0],
        ["what color is the shape?", "blue", 0],
        ["is there a ring?", "no", 1],
    ]
    (folder / "questions.json").write_text(json.dumps(questions))
    return folder


def test_easy_vqa_gets_types_by_its_answers(easy: Path, tmp_path: Path) -> None:
    path = scenes.write(easy_vqa.read(easy), tmp_path / "out")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(each["image"], each["answer"], each["type"]) for each in records] == [
        ("images/00000.png", "circle", "shape"),
        ("images/00000.png", "blue", "colour"),
        ("images/00001.png", "no", "presence"),
    ]
    with Image.open(tmp_path / "out" / "images" / "00001.png") as image:
        assert (image.mode, image.getpixel((0, 0))) == ("RGB", (1, 0, 0))


def test_a_draw_of_easy_vqa_repeats_with_its_seed(easy: Path) -> None:
    draws = {tuple(each.question for each in easy_vqa.read(easy, 2, seed)) for seed in (0, 0, 1, 2, 3)}
    assert 1 < len(draws) <= 3
    assert all(len(each) == 2 for each in draws)


def test_what_is_not_easy_vqa_is_refused_with_the_remedy(easy: Path) -> None:
    with pytest.raises(UsageError, match=r"Got a count of 9, expected 1 to 3"):
        easy_vqa.read(easy, 9)
    with pytest.raises(InputError, match=r"There is no .*questions\.json, expected"):
        easy_vqa.read(easy / "images")
    (easy / "questions.json").write_text('[["is there a ring?", "no"]]')
    with pytest.raises(InputError, match=r"Entry 0 of .* expected \[question, answer, number of the image\]"):
        easy_vqa.read(easy)
    (easy / "questions.json").write_text('[["what colour?", "pink", 0]]')
    with pytest.raises(InputError, match=r"Got the answer 'pink', expected yes, no, a shape or a colour"):
        easy_vqa.read(easy)
    (easy / "questions.json").write_text('[["is there a ring?", "no", 7]]')
    with pytest.raises(InputError, match=r"Cannot read the image .*7\.png"):
        easy_vqa.read(easy)
