"""Step 2b, read questions: the images with questions and answers that calibrate, that tune, and that are reported on.

As with texts, what is measured on must not be reported on: sections that share an image are refused, whatever their files are called.
Images are kept as PNG under the digest of what they show, so that an image of many questions is there once, and every later number can be
traced to pixels that are still there.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgaa.errors import InputError, UsageError
from tasks.artifacts.files import CARD, write_table
from tasks.cache.artifact import Store
from tasks.cache.manifest import file_digest
from tasks.cache.step import step
from tasks.data import documents, questions
from tasks.data.files import locate_source

if TYPE_CHECKING:
    from PIL.Image import Image

SCENES = "scenes"
READING = ("source", "split", "from", "to", "samples", "seed")
"""The parameters of a section that choose questions."""
Record = dict[str, Any]


def questions_content(source: str) -> dict[str, str]:
    """Dependencies of the content of a source: the code that draws the scenes, or sha256 of the file and of every image in it."""
    if source == SCENES:
        from demo import scenes

        return {SCENES: scenes.version()}
    path = locate_source(source)
    if path is None or not path.is_file():
        raise InputError(f"There is no file {source!r}: expected {SCENES}, or a .jsonl of image, question and answer.")
    images = dict.fromkeys(
        record["image"] for record in questions.read_question_file(path) if record["image"] is not None
    )
    paths = [path, *(path.parent / image for image in images)]
    return {each.relative_to(path.parent).as_posix(): file_digest(each, each.stat()) for each in paths}


@step(kind="questions")
def read_questions(
    out: Path, store: Store, *, sections: dict[str, dict[str, Any]], content: dict[str, dict[str, str]]
) -> None:
    """Read the questions of every section, after the check that no image that is reported on is measured on.

    Args:
        sections: `READING` of each section, by name; those that are reported on have names of the form `questions.<set>`.
        content: `questions_content` of each section's source; not read, only part of the cache key.
    """
    card, seen = {}, dict[str, set[str]]()
    for name, given in sections.items():
        records = [_keep_image(out / name, record, image) for record, image in choose_questions(given)]
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (out / name).mkdir(exist_ok=True)
        (out / name / questions.QUESTIONS).write_text(lines, encoding="utf-8")
        seen[name] = {record["image"] for record in records if record["image"] is not None}
        identity = {"source": Path(given["source"]).name, "split": given["split"], "content": content[name]}
        card[name] = {
            "questions": len(records),
            "images": len(seen[name]),
            "data_digest": documents.digest(json.dumps(record, sort_keys=True) for record in records),
            **identity,
        }
    _require_disjoint(seen)
    write_table(out / CARD, {"sections": card})


def choose_questions(given: Mapping[str, Any]) -> Iterable[tuple[Record, "Image | None"]]:
    """The questions of a section with their images."""
    from mgaa.inputs.tokens import draw_indices

    if given["source"] == SCENES:
        yield from _draw_scenes(given)
        return
    path = Path(given["source"]).expanduser()
    part = documents.portion(questions.read_question_file(path), given["from"], given["to"])
    for index in draw_indices(len(part), given["samples"], given["seed"]).tolist():
        record = part[index]
        yield record, None if record["image"] is None else questions.open_image(path.parent / record["image"])


def _draw_scenes(given: Mapping[str, Any]) -> Iterable[tuple[Record, "Image | None"]]:
    from demo import scenes

    if given["samples"] is None:
        raise UsageError(f"samples is null, but {SCENES} are drawn without end: set how many questions there shall be")
    types = (*scenes.TYPES, scenes.CAPTION)
    for each in scenes.examples(given["split"], given["samples"], given["seed"], types):
        yield {"image": None, "question": each.question, "answer": each.answer, "type": each.type}, each.image


def _keep_image(folder: Path, record: Record, image: "Image | None") -> Record:
    """The record with its image, which is written where it is not there yet."""
    if image is None:
        return {**record, "image": None}
    digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()
    name = f"images/{digest}.png"
    if not (folder / name).exists():
        (folder / "images").mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    return {**record, "image": name}


def _require_disjoint(seen: Mapping[str, set[str]]) -> None:
    reported = [name for name in seen if name.startswith("questions.")]
    for name in (name for name in seen if name not in reported):
        for other in reported:
            if shared := seen[name] & seen[other]:
                raise InputError(
                    f"{len(shared)} images are in data.{name} and in data.{other}, expected none: give them different sources, splits, "
                    "or ranges (`from`, `to`) that do not meet"
                )
