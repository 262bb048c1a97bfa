"""Drawn scenes for the demo vision-language model: one to four coloured shapes on a 3 x 3 grid, questions about them, and captions.

Everything is drawn from a seed, so there is no data set to fetch and no end of examples. The wording includes that of easy-VQA
(V. Zhou 2019, https://github.com/vzhou842/easy-VQA), whose shapes and colours are among ours, so that one model answers both.

A scene is the set of (shape, colour, cell) of its things; size, exact place, shade and background are jitter. The sha256 of that set
decides its split, as the content of a file does in `corpus.py`: no set of a held-out split occurs in train, however it is jittered.
A thing alone may be large and lies anywhere in the image; its cell is that of its centre.

An answer is chosen before the scene, and scenes are drawn until one has a question with that answer. So answers are balanced within
a type, and guessing from the question alone earns little.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import PIL
from PIL import Image, ImageDraw

from mgaa.errors import UsageError

SIZE = 64
GRID = 3
MOST = 4
"""Things in a scene, at most."""

COUNTS = (1, 1, 1, 2, 2, 3, MOST)
"""How many things a scene has, each as likely as the others."""

SHAPES = ("circle", "rectangle", "triangle", "cross", "diamond", "ring")
COLOURS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
"""Name -> 8-bit RGB, before jitter."""

PLACES = (
    "top left",
    "top centre",
    "top right",
    "middle left",
    "centre",
    "middle right",
    "bottom left",
    "bottom centre",
    "bottom right",
)
"""Names of the cells, row by row."""

TYPES = ("shape", "colour", "count", "position", "presence")
CAPTION = "caption"
HELD_OUT = {"test": 80, "validation": 40, "calibration": 80}
"""Scenes out of a thousand; the rest is train."""

ANSWERS = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "count": tuple(map(str, range(MOST + 1))),
    "position": PLACES,
    "presence": ("yes", "no"),
}
"""Type -> every possible answer."""

_JITTER = 20
_FINE = 4
_STROKE = 0.36
_INSIDE, _GAP = 1.5, 1.0

_WORDS: dict[str, tuple[str, ...]] = {
    "shape of all": (
        "what shape is in the image?",
        "what shape is present?",
        "what shape does the image contain?",
        "what is the shape in the image?",
    ),
    "shape of colour": ("what is the {colour} shape?", "what shape is {colour}?", "which shape is {colour}?"),
    "shape at place": ("what shape is in the {place}?", "what is in the {place}?", "which shape is in the {place}?"),
    "colour of all": (
        "what color is the shape?",
        "what is the color of the shape?",
        "what colour is the shape?",
        "what is the colour of the shape?",
    ),
    "colour of shape": (
        "what color is the {shape}?",
        "what is the color of the {shape}?",
        "what colour is the {shape}?",
        "what is the colour of the {shape}?",
    ),
    "colour at place": (
        "what color is the shape in the {place}?",
        "what colour is the shape in the {place}?",
        "which colour is in the {place}?",
    ),
    "count": (
        "how many {noun}s are there?",
        "how many {noun}s are in the image?",
        "how many {noun}s does the image contain?",
    ),
    "position": (
        "where is the {noun}?",
        "in which part of the image is the {noun}?",
        "what is the position of the {noun}?",
    ),
    "present": (
        "is there a {noun}?",
        "is there a {noun} in the image?",
        "is a {noun} present?",
        "does the image contain a {noun}?",
    ),
    "absent": (
        "is there not a {noun}?",
        "is there not a {noun} in the image?",
        "is no {noun} present?",
        "does the image not contain a {noun}?",
    ),
    "filled": ("is there a shape in the {place}?", "is a shape in the {place}?"),
    "empty": ("is there no shape in the {place}?", "is the {place} empty?"),
    CAPTION: (
        "describe the image.",
        "describe this image.",
        "what does the image show?",
        "write a caption for the image.",
    ),
}


@dataclass(frozen=True)
class Example:
    """An image of 64 x 64 RGB with one question about it; `type` is one of `TYPES` or `CAPTION`."""

    image: Image.Image
    question: str
    answer: str
    type: str


@dataclass(frozen=True, order=True)
class Thing:
    """A shape of a colour with its centre in a cell (0 to 8, row by row)."""

    cell: int
    shape: str
    colour: str


Scene = tuple[Thing, ...]
"""In the order of the cells."""

Pair = tuple[str, str]
"""Question and answer."""


def examples(split: str, count: int, seed: int = 0, types: Sequence[str] | None = None) -> list[Example]:
    """`count` examples of a split, the same for the same arguments: types take turns, and so do the answers within a type.

    Args:
        split: `train`, `calibration`, `validation` or `test`.
        count: how many.
        seed: another seed gives other examples of the same split.
        types: of `TYPES` and `CAPTION`; the five types of questions where None.

    Raises:
        UsageError: an unknown split or type, or a negative count.
    """
    chosen = TYPES if types is None else tuple(types)
    unknown = [each for each in chosen if each not in (*TYPES, CAPTION)]
    if unknown or not chosen or count < 0:
        raise UsageError(
            f"Got types {list(chosen)} and count {count}, expected types among {[*TYPES, CAPTION]} and a count of at least 0."
        )
    random = Random(f"{split} {seed} {' '.join(chosen)}")
    drawn = scenes(split, random)
    return [_example(drawn, chosen[place % len(chosen)], place // len(chosen), random) for place in range(count)]


def scenes(split: str, random: Random) -> Iterator[Scene]:
    """Endless scenes of a split.

    Raises:
        UsageError: an unknown split.
    """
    if split not in (*HELD_OUT, "train"):
        raise UsageError(f"Got split {split!r}, expected one of {[*HELD_OUT, 'train']}.")
    return _scenes(split, random)


def split_of(scene: Scene) -> str:
    """The split of a scene, by the sha256 of its things."""
    content = ";".join(f"{each.cell} {each.shape} {each.colour}" for each in sorted(scene))
    place = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") % 1000
    for name, share in HELD_OUT.items():
        if place < share:
            return name
        place -= share
    return "train"


def draw(scene: Scene, random: Random) -> Image.Image:
    """The scene as 64 x 64 RGB on a light background, drawn four times as large and averaged."""
    image = Image.new("RGB", (SIZE * _FINE, SIZE * _FINE), tuple(random.randint(224, 255) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for thing in scene:
        _draw(pen, thing, random, alone=len(scene) == 1)
    return image.reduce(_FINE)


def questions(scene: Scene, kind: str, random: Random) -> list[list[Pair]]:
    """All questions of a type that have one answer in this scene, each in one of its phrasings, grouped by what they refer to.

    Raises:
        UsageError: an unknown type.
    """
    askers = {
        "shape": _shape,
        "colour": _colour,
        "count": _count,
        "position": _position,
        "presence": _presence,
        CAPTION: _caption,
    }
    if kind not in askers:
        raise UsageError(f"Got type {kind!r}, expected one of {list(askers)}.")
    return [group for group in askers[kind](scene, random) if group]


def pick(groups: Sequence[Sequence[Pair]], random: Random, answer: str | None = None) -> Pair | None:
    """One question out of a random group, with this answer if one is given; None where there is none."""
    fitting = [[each for each in group if answer in (None, each[1])] for group in groups]
    left = [group for group in fitting if group]
    return random.choice(random.choice(left)) if left else None


def caption(scene: Scene) -> str:
    """Every thing with its place, in the order of the cells."""
    parts = [f"a {each.colour} {each.shape} in the {PLACES[each.cell]}" for each in sorted(scene)]
    return (", ".join(parts[:-1]) + " and " if parts[1:] else "") + parts[-1] + "."


def version() -> str:
    """The identity of what is drawn: sha256 over this file and the version of Pillow."""
    return hashlib.sha256(Path(__file__).read_bytes() + PIL.__version__.encode()).hexdigest()


def write(examples: Iterable[Example], folder: Path) -> Path:
    """Writes `questions.jsonl` (image, question, answer, type) and `images/00000.png`, one file for each image; returns the former."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names: dict[tuple[tuple[int, int], bytes], str] = {}
    lines = []
    for example in examples:
        content = (example.image.size, example.image.tobytes())
        if content not in names:
            names[content] = f"images/{len(names):05d}.png"
            example.image.save(folder / names[content])
        record = {
            "image": names[content],
            "question": example.question,
            "answer": example.answer,
            "type": example.type,
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    path = folder / "questions.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _example(drawn: Iterator[Scene], kind: str, turn: int, random: Random) -> Example:
    answer = ANSWERS[kind][turn % len(ANSWERS[kind])] if kind in ANSWERS else None
    for scene in drawn:
        pair = pick(questions(scene, kind, random), random, answer)
        if pair:
            return Example(draw(scene, random), *pair, kind)
    raise AssertionError("scenes do not end")


def _scenes(split: str, random: Random) -> Iterator[Scene]:
    while True:
        scene = _scene(random)
        if split_of(scene) == split:
            yield scene


def _scene(random: Random) -> Scene:
    """Half of the scenes repeat shapes or colours, so that there is something to count; fewer things are more common."""
    count = random.choice(COUNTS)
    cells = random.sample(range(len(PLACES)), count)
    shapes = random.sample(SHAPES, random.choice((2, len(SHAPES))))
    colours = random.sample(list(COLOURS), random.choice((2, len(COLOURS))))
    return tuple(sorted(Thing(cell, random.choice(shapes), random.choice(colours)) for cell in cells))


def _shape(scene: Scene, random: Random) -> list[list[Pair]]:
    def ask(words: str, thing: Thing) -> Pair:
        return _phrase(words, random, colour=thing.colour, place=PLACES[thing.cell]), thing.shape

    alone = [ask("shape of all", each) for each in scene if len(scene) == 1]
    return [
        alone,
        [ask("shape of colour", each) for each in scene if _is_unique(scene, "colour", each.colour)],
        [ask("shape at place", each) for each in scene],
    ]


def _colour(scene: Scene, random: Random) -> list[list[Pair]]:
    def ask(words: str, thing: Thing) -> Pair:
        return _phrase(words, random, shape=thing.shape, place=PLACES[thing.cell]), thing.colour

    alone = [ask("colour of all", each) for each in scene if len(scene) == 1]
    return [
        alone,
        [ask("colour of shape", each) for each in scene if _is_unique(scene, "shape", each.shape)],
        [ask("colour at place", each) for each in scene],
    ]


def _count(scene: Scene, random: Random) -> list[list[Pair]]:
    def ask(noun: str, count: int) -> Pair:
        return _phrase("count", random, noun=noun).replace("crosss", "crosses"), str(count)

    return [
        [ask("shape", len(scene))],
        [ask(shape, sum(each.shape == shape for each in scene)) for shape in SHAPES],
        [ask(f"{colour} shape", sum(each.colour == colour for each in scene)) for colour in COLOURS],
    ]


def _position(scene: Scene, random: Random) -> list[list[Pair]]:
    def ask(noun: str, thing: Thing) -> Pair:
        return _phrase("position", random, noun=noun), PLACES[thing.cell]

    twins = [(each.shape, each.colour) for each in scene]
    return [
        [ask("shape", each) for each in scene if len(scene) == 1],
        [ask(each.shape, each) for each in scene if _is_unique(scene, "shape", each.shape)],
        [ask(f"{each.colour} shape", each) for each in scene if _is_unique(scene, "colour", each.colour)],
        [ask(f"{each.colour} {each.shape}", each) for each in scene if twins.count((each.shape, each.colour)) == 1],
    ]


def _presence(scene: Scene, random: Random) -> list[list[Pair]]:
    """Pairs of a colour and a shape are those of the scene and those whose colour or shape is there, the hard ones."""
    shapes, colours = {each.shape for each in scene}, {each.colour for each in scene}
    twins = {(each.shape, each.colour) for each in scene}
    cells = {each.cell for each in scene}
    close = [(shape, colour) for shape in SHAPES for colour in COLOURS if shape in shapes or colour in colours]
    nouns = [
        [(shape, shape in shapes) for shape in SHAPES],
        [(f"{colour} shape", colour in colours) for colour in COLOURS],
        [(f"{colour} {shape}", (shape, colour) in twins) for shape, colour in close],
    ]
    places = [(place, cell in cells) for cell, place in enumerate(PLACES)]
    claims = [
        [_claim(("present", "absent"), is_true, random, noun=noun) for noun, is_true in _even(each, random)]
        for each in nouns
    ]
    return [
        *claims,
        [_claim(("filled", "empty"), is_true, random, place=place) for place, is_true in _even(places, random)],
    ]


def _even(facts: Sequence[tuple[str, bool]], random: Random) -> list[tuple[str, bool]]:
    """As many true ones as false ones; otherwise, most things being absent, most negations would have the answer yes."""
    true, false = ([each for each in facts if each[1] is wanted] for wanted in (True, False))
    count = min(len(true), len(false))
    return random.sample(true, count) + random.sample(false, count)


def _claim(words: tuple[str, str], is_true: bool, random: Random, **values: str) -> Pair:
    """The question or, half of the time, its negation."""
    negated = random.random() < 0.5
    return _phrase(words[negated], random, **values), "yes" if is_true != negated else "no"


def _caption(scene: Scene, random: Random) -> list[list[Pair]]:
    return [[(_phrase(CAPTION, random), caption(scene))]]


def _phrase(words: str, random: Random, **values: str) -> str:
    return random.choice(_WORDS[words]).format(**values)


def _is_unique(scene: Scene, attribute: str, value: str) -> bool:
    return [getattr(each, attribute) for each in scene].count(value) == 1


def _draw(pen: ImageDraw.ImageDraw, thing: Thing, random: Random, *, alone: bool) -> None:
    colour = tuple(min(255, max(0, value + random.randint(-_JITTER, _JITTER))) for value in COLOURS[thing.colour])
    cell = SIZE / GRID
    half = random.uniform(4.5, 16) if alone else random.uniform(5, 9)
    row, column = divmod(thing.cell, GRID)
    x, y = (_centre(each * cell, cell, half, random, alone=alone) for each in (column, row))
    _fill(pen, thing.shape, x * _FINE, y * _FINE, half * _FINE, colour, random)


def _centre(start: float, cell: float, half: float, random: Random, *, alone: bool) -> float:
    """A coordinate of the centre, so that the thing stays in its cell or, alone, in the image with the centre in the cell."""
    if alone:
        low, high = max(start + _INSIDE, half + _GAP), min(start + cell - _INSIDE, SIZE - half - _GAP)
    else:
        low, high = start + half + _GAP, start + cell - half - _GAP
    return random.uniform(low, high)


def _fill(
    pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, half: float, colour: tuple[int, ...], random: Random
) -> None:
    box = (x - half, y - half, x + half, y + half)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=round(_STROKE * half))
    elif shape == "rectangle":
        wide, high = half * random.uniform(0.55, 1), half * random.uniform(0.55, 1)
        pen.rectangle((x - wide, y - high, x + wide, y + high), fill=colour)
    elif shape == "triangle":
        wide, high = half, half * math.sqrt(3) / 2
        pen.polygon([(x, y - high), (x + wide, y + high), (x - wide, y + high)], fill=colour)
    elif shape == "diamond":
        pen.polygon([(x, y - half), (x + half, y), (x, y + half), (x - half, y)], fill=colour)
    else:
        thin = _STROKE * half
        pen.rectangle((x - half, y - thin, x + half, y + thin), fill=colour)
        pen.rectangle((x - thin, y - half, x + thin, y + half), fill=colour)
