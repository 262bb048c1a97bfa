"""Questions are read from scenes and files into one form; an image is kept once, and none that is reported on is measured on."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demo.scenes import CAPTION, TYPES, examples
from mgaa.errors import InputError, UsageError
from tasks.artifacts.files import CARD, table
from tasks.cache.artifact import Artifact, Store
from tasks.data.questions import questions_of, records_of
from tasks.steps.read_questions import questions_content
from tests.support.seeing import picture
from tests.support.vision import kept, reading, scenes, written

LINES: list[dict[str, Any]] = [
    {"image": "images/a.png", "question": "What is it?", "answer": "a cup", "type": "other"},
    {"image": "images/b.png", "question": "Is it red?", "answer": "yes"},
    {"image": "images/a.png", "question": "How many?", "answer": "3"},
    {"question": "Who?", "answer": "Ann"},
]
SETS = ("test", "other")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def file(folder: Path, **pictures: Image.Image) -> dict[str, Any]:
    """The section of a file with `LINES` about two images; their pixels can be chosen."""
    shown = {"a": picture(1), "b": picture(2)} | pictures
    return written(folder, LINES, {f"images/{name}.png": image for name, image in shown.items()})


def digests(store: Store, questions: Artifact) -> dict[str, str]:
    return {name: given["data_digest"] for name, given in table(store, questions, CARD)["sections"].items()}


def named(image: Image.Image) -> str:
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def test_scenes_are_those_that_the_demo_draws_captions_included(store: Store) -> None:
    found = reading(store, {"questions.scenes": scenes(14, seed=3)})
    drawn = examples("test", 14, 3, (*TYPES, CAPTION))
    told, asked = (each(store, found, "questions.scenes") for each in (records_of, questions_of))
    assert [(each["question"], each["answer"], each["type"]) for each in told] == [
        (each.question, each.answer, each.type) for each in drawn
    ]
    assert {each["type"] for each in told} == {*TYPES, CAPTION}
    for question, expected in zip(asked, drawn, strict=True):
        assert question.image is not None
        assert question.image.tobytes() == expected.image.tobytes()
    (card,) = table(store, found, CARD)["sections"].values()
    assert (card["source"], card["split"], card["questions"], card["images"]) == ("scenes", "test", 14, 14)
    assert card["content"] == questions_content("scenes")


def test_the_images_of_a_file_are_kept_once_under_the_digest_of_their_pixels(store: Store, tmp_path: Path) -> None:
    twin = picture(1)  # another file with the same pixels
    given = written(
        tmp_path / "data",
        [*LINES, {"image": "images/twin.bmp", "question": "Again?", "answer": "no"}],
        {"images/a.png": picture(1), "images/b.png": picture(2), "images/twin.bmp": twin},
    )
    found = reading(store, {"questions.mine": given})
    folder = store.folder(found) / "questions.mine"
    assert {path.stem for path in (folder / "images").iterdir()} == {named(picture(1)), named(picture(2))}
    told = records_of(store, found, "questions.mine")
    first, second = f"images/{named(picture(1))}.png", f"images/{named(picture(2))}.png"
    assert [each["image"] for each in told] == [first, second, first, None, first]
    assert [each["type"] for each in told] == ["other", "yes/no", "number", "other", "yes/no"]
    (card,) = table(store, found, CARD)["sections"].values()
    assert (card["questions"], card["images"], card["source"]) == (5, 2, "questions.jsonl")


def test_a_range_and_a_draw_choose_questions_and_only_their_images_are_kept(store: Store, tmp_path: Path) -> None:
    given = file(tmp_path / "data")
    found = reading(store, {"questions.half": {**given, "from": 0.5}, "questions.two": {**given, "samples": 2}})
    assert [each["question"] for each in records_of(store, found, "questions.half")] == ["How many?", "Who?"]
    assert len([*(store.folder(found) / "questions.half" / "images").iterdir()]) == 1
    drawn = [each["question"] for each in records_of(store, found, "questions.two")]
    assert len(drawn) == 2
    assert drawn == [line["question"] for line in LINES if line["question"] in drawn]


def test_questions_about_no_image_are_read_too(store: Store, tmp_path: Path) -> None:
    found = reading(store, {"questions.blind": written(tmp_path / "data", [LINES[3]], {})})
    assert [each.image for each in questions_of(store, found, "questions.blind")] == [None]
    assert table(store, found, CARD)["sections"]["questions.blind"]["images"] == 0


@pytest.mark.parametrize("measuring", ["calibration", "recovery"])
def test_what_is_asked_is_not_measured_on_whatever_the_files_are_called(
    store: Store, tmp_path: Path, measuring: str
) -> None:
    first = file(tmp_path / "one")
    other = written(
        tmp_path / "two",
        [{"image": "shown.bmp", "question": "Which?", "answer": "this"}],
        {"shown.bmp": picture(2)},
    )
    with pytest.raises(
        InputError,
        match=rf"^1 images are in data.{measuring} and in data.questions.other, expected none: give them different sources, splits",
    ):
        reading(store, {measuring: first, "questions.test": scenes(2), "questions.other": other})
    assert kept(store, "questions") == []


def test_sections_that_are_reported_on_may_share_images_and_recovery_may_with_the_calibration(
    store: Store, tmp_path: Path
) -> None:
    given = file(tmp_path / "data")
    assert len(digests(store, reading(store, {f"questions.{name}": given for name in SETS}))) == 2
    found = reading(store, {"calibration": given, "recovery": given, "questions.test": scenes(2)})
    assert digests(store, found)["calibration"] == digests(store, found)["recovery"]


def test_scenes_of_different_splits_share_no_image(store: Store) -> None:
    sections = {name: scenes(40, name) for name in ("calibration", "train")}
    found = reading(store, {**sections, "questions.test": scenes(40)})
    assert len({*digests(store, found).values()}) == 3


def test_an_image_that_is_damaged_is_named_and_nothing_is_left(store: Store, tmp_path: Path) -> None:
    given = file(tmp_path / "data")
    path = tmp_path / "data" / "images" / "b.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"data/images/b.png is damaged or truncated .*: fetch it again"):
        reading(store, {"questions.fine": scenes(2), "questions.broken": given})
    assert kept(store, "questions") == []
    file(tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "images" / "b.png", path)
    found = reading(store, {"questions.broken": given})
    assert [path.name for path in kept(store, "questions")] == [found.digest]


def test_scenes_without_a_number_and_of_no_split_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="samples is null, but scenes are drawn without end: set how many questions"):
        reading(store, {"calibration": scenes(None)})
    with pytest.raises(UsageError, match="Got split 'tset', expected one of"):
        reading(store, {"questions.test": scenes(2, "tset")})
    assert kept(store, "questions") == []


def test_a_file_that_is_not_there_is_refused_with_what_a_source_may_be() -> None:
    with pytest.raises(
        InputError, match=r"no file 'scene': expected scenes, or a .jsonl of image, question and answer"
    ):
        questions_content("scene")


def test_a_pixel_changes_the_content_the_identity_and_the_artifact(store: Store, tmp_path: Path) -> None:
    changed = picture(1)
    changed.putpixel((3, 4), tuple(255 - each for each in changed.getpixel((3, 4))))
    one, same, other = file(tmp_path / "one"), file(tmp_path / "same"), file(tmp_path / "other", a=changed)
    contents = [questions_content(given["source"]) for given in (one, same, other)]
    assert contents[0] == contents[1]
    assert {name for name in contents[0] if contents[0][name] != contents[2][name]} == {"images/a.png"}
    found = [reading(store, {"questions.mine": given}) for given in (one, same, other)]
    assert found[0] == found[1] != found[2]
    first, _, last = (digests(store, each)["questions.mine"] for each in found)
    assert first != last


def test_an_answer_changes_the_identity_too(store: Store, tmp_path: Path) -> None:
    one, other = file(tmp_path / "one"), file(tmp_path / "other")
    path = Path(other["source"])
    path.write_text(path.read_text().replace("a cup", "a hat"))
    first, last = (reading(store, {"questions.mine": given}) for given in (one, other))
    assert digests(store, first) != digests(store, last)


def test_the_records_are_the_form_that_is_read_again(store: Store, tmp_path: Path) -> None:
    """So what a run kept can be given to the next one as a file."""
    found = reading(store, {"questions.mine": file(tmp_path / "data")})
    again = reading(
        store, {"questions.mine": {"source": str(store.folder(found) / "questions.mine" / "questions.jsonl")}}
    )
    first, second = (
        (store.folder(each) / "questions.mine" / "questions.jsonl").read_text().splitlines() for each in (found, again)
    )
    assert [json.loads(line) for line in first] == [json.loads(line) for line in second]
    assert digests(store, found) == digests(store, again)
