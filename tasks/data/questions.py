"""Questions about images: read from a user's files, and from the artifact `prompts`.

A user's file has a question per row (tasks/data/rows.py), in one of two forms:

    {"image": "images/1.png", "question": "What colour is it?", "answer": "red", "type": "colour"}
    {"image": "images/1.png", "question": "What is it?", "choices": ["a cup", "a hat"], "answer": 1}

`image` is a path below the folder of the file, or `null` or missing for a question without one. If `type` is missing, it is `yes/no`
for these answers, `number` for digits, `choice` for the second form and `other` for the rest; `caption` marks answers that are scored by
their loss. The second form is that of ScienceQA (Lu et al. 2022, arXiv 2209.09513): the choices are shown with letters, and the letter is
the answer. Other fields are ignored.

The artifact holds, per section, `<section>/questions.jsonl` in the first form with all four fields, and `<section>/images/*.png`.
"""

import re
import struct
import warnings
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from mgaa.errors import InputError
from tasks.cache.artifact import Artifact, Store
from tasks.data import row_formats, rows

if TYPE_CHECKING:
    from PIL.Image import Image

    from mgaa.inputs.prompts import Question

QUESTIONS = "questions.jsonl"
CAPTION = "caption"
"""Type of the questions whose answers are scored by their loss."""
CHOICE = "choice"
MARK = "<image>"
"""Placeholder of an image in templates, which therefore may not occur in a text."""

PIXELS = 50_000_000
"""Maximum pixels of an image: 150 MB once it is decoded. A file of a few kilobytes can expand to far more."""
SIDE = 2
"""Minimum pixels of the shorter side."""

_SHOWN = ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK")
"""Pillow's modes that convert to RGB without loss of meaning."""
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, struct.error, zlib.error)
"""Errors that Pillow raises for damaged files, depending on the format."""
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)*%?")


def questions_of(store: Store, prompts: Artifact, section: str) -> "list[Question]":
    """Questions of a section with their images, each of which is opened once.

    Raises:
        InputError: as `records_of`, or an image is damaged.
    """
    from mgaa.inputs.prompts import Question

    records = records_of(store, prompts, section)
    folder = store.folder(prompts) / section
    names = sorted({record["image"] for record in records if record["image"] is not None})
    images = {name: open_image(folder / name) for name in names}
    return [Question(record["question"], record["answer"], images.get(record["image"])) for record in records]


def records_of(store: Store, prompts: Artifact, section: str) -> list[dict[str, Any]]:
    """Lines of a section: `image` (below the folder of the section, or None), `question`, `answer`, `type`.

    Raises:
        InputError: there is no such section, or no question in it.
    """
    folder = store.folder(prompts)
    if not (folder / section / QUESTIONS).is_file():
        there = ", ".join(sorted(path.parent.name for path in folder.glob(f"*/{QUESTIONS}"))) or "none"
        raise InputError(f"The prompts have no section {section!r}; there is: {there}: name one of these.")
    return read_question_file(folder / section / QUESTIONS)


def read_question_file(source: Path) -> list[dict[str, Any]]:
    """Read the questions of a file of rows, in order, each with `image`, `question`, `answer` and `type`; images are not opened.

    Raises:
        InputError: the file is missing, empty or not text, or some lines have neither of the forms above (the message counts them and
            names the first).
    """
    given, found, wrong = row_formats.read_rows(source), list[dict[str, Any]](), list[InputError]()
    for number, row in given.numbered:
        try:
            found.append(_record(row, f"{given.unit} {number} of {source}", source.parent))
        except InputError as error:
            wrong.append(error)
    if wrong:
        total = len(found) + len(wrong)
        raise InputError(
            f"{wrong[0]} It is the first of {len(wrong)} in {total} questions that cannot be used."
        ) from wrong[0]
    if not found:
        raise InputError(f"{source} has 0 questions, expected at least 1: a row for each.")
    return found


def _record(row: Any, place: str, folder: Path) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"{place} is {rows.shorten(row)!r}, expected an object with a question and an answer.")
    question = _text(row, "question", place)
    if row.get("choices") is not None:
        question, answer, kind = *_with_choices(question, row, place), CHOICE
    else:
        answer = _text(row, "answer", place)
        kind = _kind(answer)
    if MARK in question:
        raise InputError(
            f"{place} has {MARK} in its question, expected text alone: name the image in the field `image`; the chat template puts the "
            "mark where the model expects it."
        )
    given = row.get("type")
    if given is not None and not (isinstance(given, str) and given.strip()):
        raise InputError(f"{place} has the type {given!r}, expected a word, or no such field.")
    for text in (question, answer, given or kind):
        rows.whole_text(text, place)
    return {"image": _image(row, place, folder), "question": question, "answer": answer, "type": given or kind}


def _text(row: dict[str, Any], field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        there = f"is {rows.shorten(value)}" if field in row else f"is missing; there is: {', '.join(row) or 'nothing'}"
        raise InputError(f"{place}: the {field} {there}; expected a text with at least one letter, in quotation marks.")
    return value


def _with_choices(question: str, row: dict[str, Any], place: str) -> tuple[str, str]:
    """Question with its choices, and the letter of the correct one."""
    choices, index = row["choices"], row.get("answer")
    if not isinstance(choices, list) or not all(isinstance(each, str) and each.strip() for each in choices):
        raise InputError(f"{place} has the choices {rows.shorten(choices)}, expected a list of texts.")
    if not 2 <= len(choices) <= len(ascii_uppercase):
        raise InputError(f"{place} has {len(choices)} choices, expected 2 to {len(ascii_uppercase)}, one per letter.")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(choices):
        raise InputError(
            f"{place} has the answer {index!r}, expected the index of the right choice, 0 to {len(choices) - 1}."
        )
    shown = "".join(f"\n{letter}. {each}" for letter, each in zip(ascii_uppercase, choices, strict=False))
    return f"{question}{shown}\nAnswer with the letter.", ascii_uppercase[index]


def _kind(answer: str) -> str:
    """Type of a question whose line names none."""
    plain = answer.strip().rstrip(".").lower()
    if plain in ("yes", "no"):
        return "yes/no"
    return "number" if _NUMBER.fullmatch(plain) else "other"


def _image(row: dict[str, Any], place: str, folder: Path) -> str | None:
    """Path of an image below `folder`, which must be a file."""
    given = row.get("image")
    if isinstance(given, list) or row.get("images") is not None:
        raise InputError(
            f"{place} has a list of images, expected one path in the field `image`: write a line per image, or put them into one image."
        )
    if given is None:
        return None
    if not isinstance(given, str) or not given:
        raise InputError(f"{place} has the image {rows.shorten(given)}, expected a path below {folder}, or null.")
    path = PurePosixPath(given)
    inside = (
        not path.is_absolute() and not PureWindowsPath(given).drive and ".." not in path.parts and "\0" not in given
    )
    if not inside or not (folder / path).resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"{place} has the image {given!r}, expected a path below {folder}, without `..` and links that lead out of it: move the image "
            "there and name it from there."
        )
    if not (folder / path).is_file():
        raise InputError(f"{place} has the image {given!r}, which is no file in {folder}: add it, or correct the path.")
    return path.as_posix()


def open_image(path: Path) -> "Image":
    """Open an image in RGB, fully decoded and rotated by its EXIF orientation; transparent parts become white, an animation its first
    frame.

    Raises:
        InputError: the file is missing, damaged or truncated, its mode does not convert to RGB without loss, or it has more than `PIXELS`
            pixels or a side below `SIDE`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not path.is_file():
        raise InputError(f"There is no image {path}: add it, or correct the path.")
    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(path) as image,
        ):
            _check(path, image)
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is no image that Pillow knows, or its beginning is damaged: fetch it again, or convert it to PNG or JPEG."
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path} has more than {PIXELS} pixels ({error}), expected at most {PIXELS}: scale it down."
        ) from error
    except _DAMAGE as error:
        raise InputError(f"{path} is damaged or truncated ({error}): fetch it again.") from error


def _check(path: Path, image: "Image") -> None:
    """Reject an image by its header, before anything is decoded."""
    width, height = image.size
    if width * height > PIXELS:
        raise InputError(f"{path} has {width} x {height} pixels, expected at most {PIXELS}: scale it down.")
    if min(width, height) < SIDE:
        raise InputError(
            f"{path} has {width} x {height} pixels, expected at least {SIDE} x {SIDE}: give a larger image."
        )
    if image.mode not in _SHOWN:
        raise InputError(
            f"{path} has the mode {image.mode}, expected one of {', '.join(_SHOWN)}: RGB would lose what its numbers mean; scale them to 8 "
            "bits as they are to be seen, and save it as PNG."
        )


def _rgb(image: "Image") -> "Image":
    """Convert the image to RGB, on white."""
    from PIL import Image

    if image.mode not in ("RGBA", "LA") and "transparency" not in image.info:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    white = Image.new("RGBA", seen.size, "white")
    return Image.alpha_composite(white, seen).convert("RGB")
