"""easy-VQA in the demo's form: one split's `questions.json` and `images` become `questions.jsonl`, with a type for every question.

    python -m demo.easy_vqa data/vqa/test prepared/easy-vqa               # all of it
    python -m demo.easy_vqa data/vqa/test prepared/easy-vqa --count 500   # 500 questions, drawn with --seed

Source: V. Zhou 2019, https://github.com/vzhou842/easy-VQA, MIT licence: images of 64 x 64 with one shape, a list of
[question, answer, number of the image]. The answer says the type: `presence` for yes and no, else `shape` or `colour`.
"""

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from demo.scenes import COLOURS, SHAPES, Example, write
from mgaa.errors import InputError, MgaaError, UsageError


def read(folder: Path, count: int | None = None, seed: int = 0) -> list[Example]:
    """Read the questions of a split in the order of its file, or `count` of them drawn with `seed`.

    Raises:
        UsageError: the count is below 1 or above the number of questions.
        InputError: a file is missing or is not of easy-VQA's form.
    """
    path = folder / "questions.json"
    records = _records(path)
    if count is not None and not 1 <= count <= len(records):
        raise UsageError(
            f"Got a count of {count}, expected 1 to {len(records)}, the questions in {path}: change --count."
        )
    chosen = range(len(records)) if count is None else sorted(Random(seed).sample(range(len(records)), count))
    images: dict[int, Image.Image] = {}
    found = []
    for place in chosen:
        question, answer, number = _check_record(records[place], place, path)
        if number not in images:
            images[number] = _image(folder / "images" / f"{number}.png")
        found.append(Example(images[number], question, answer, type_of(answer)))
    return found


def type_of(answer: str) -> str:
    """Type of a question by its answer.

    Raises:
        InputError: easy-VQA has no such answer.
    """
    if answer in ("yes", "no"):
        return "presence"
    if answer in SHAPES:
        return "shape"
    if answer in COLOURS:
        return "colour"
    raise InputError(
        f"Got the answer {answer!r}, expected yes, no, a shape or a colour: is this easy-VQA's questions.json?"
    )


def _records(path: Path) -> list[Any]:
    if not path.is_file():
        raise InputError(
            f"There is no {path}, expected easy-VQA's questions: give the folder of one split, which holds it."
        )
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): copy it again from easy-VQA.") from error
    if not isinstance(records, list) or not records:
        raise InputError(
            f"{path} holds {type(records).__name__}, expected a list of questions: copy it again from easy-VQA."
        )
    return records


def _check_record(record: Any, place: int, path: Path) -> tuple[str, str, int]:
    if isinstance(record, list) and [type(each) for each in record] == [str, str, int]:
        return record[0], record[1], record[2]
    raise InputError(
        f"Entry {place} of {path} is {record!r}, expected [question, answer, number of the image]: mend it."
    )


def _image(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise InputError(f"Cannot read the image {path} ({error}): copy it again from easy-VQA.") from error


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.easy_vqa", description="Convert a split of easy-VQA.")
    parser.add_argument("source", type=Path, help="folder of a split: questions.json and images")
    parser.add_argument("output", type=Path, help="folder for questions.jsonl and images")
    parser.add_argument("--count", type=int, help="draw this many questions (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: %(default)s)")
    given = parser.parse_args()
    try:
        print(write(read(given.source, given.count, given.seed), given.output))
    except MgaaError as error:
        parser.exit(error.exit_code, f"{error}\n")


if __name__ == "__main__":
    main()
