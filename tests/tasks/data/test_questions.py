"""Questions and images of users: what is read, and what each refusal says."""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from mgaa.errors import InputError
from tasks.cache.artifact import Artifact, Store
from tasks.data.questions import open_image, questions_of, read, records_of

Line = dict[str, Any]


def written(folder: Path, *lines: Any) -> Path:
    """A file of questions beside `images/1.png`."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), "red").save(folder / "images" / "1.png")
    path = folder / "questions.jsonl"
    path.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("yes", "yes/no"),
        ("No.", "yes/no"),
        ("12", "number"),
        ("-3.5", "number"),
        ("40%", "number"),
        ("two", "other"),
        ("yes, it is", "other"),
        ("3 cats", "other"),
    ],
)
def test_the_type_of_a_question_follows_from_its_answer(tmp_path: Path, answer: str, kind: str) -> None:
    assert read(written(tmp_path, {"question": "What?", "answer": answer})) == [
        {"image": None, "question": "What?", "answer": answer, "type": kind}
    ]


def test_a_line_is_read_as_it_is_and_blank_ones_are_skipped(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"image": "./images/1.png", "question": "What?", "answer": "a cup", "type": "caption", "note": 1},
        "",
        {"image": None, "question": "Who?", "answer": "Ann", "type": None},
    )
    assert read(path) == [
        {"image": "images/1.png", "question": "What?", "answer": "a cup", "type": "caption"},
        {"image": None, "question": "Who?", "answer": "Ann", "type": "other"},
    ]


def test_choices_are_shown_with_letters_and_the_letter_is_the_answer(tmp_path: Path) -> None:
    given = {"image": "images/1.png", "question": "What is it?", "choices": ["a cup", "a hat"], "answer": 1, "hint": ""}
    assert read(written(tmp_path, given)) == [
        {
            "image": "images/1.png",
            "question": "What is it?\nA. a cup\nB. a hat\nAnswer with the letter.",
            "answer": "B",
            "type": "choice",
        }
    ]


GOOD: Line = {"question": "What?", "answer": "red"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", r"is '\[1\]', expected an object"),
        ({"answer": "red"}, "the question is missing; there is: answer"),
        ({"question": "What?"}, "the answer is missing; there is: question"),
        (GOOD | {"answer": ""}, "the answer is ''"),
        (GOOD | {"answer": " "}, "the answer is ' '"),
        (GOOD | {"answer": 3}, "the answer is 3; expected a text .* in quotation marks"),
        (GOOD | {"answer": ["red"]}, "the answer is "),
        (GOOD | {"question": ""}, "the question is ''"),
        (GOOD | {"question": "<image> What?"}, "has <image> in its question.* name the image in the field `image`"),
        (GOOD | {"type": ""}, "has the type ''"),
        (GOOD | {"type": 1}, "has the type 1"),
        (GOOD | {"image": ["images/1.png"]}, "has a list of images"),
        (GOOD | {"images": ["images/1.png"]}, "has a list of images"),
        (GOOD | {"image": 1}, "has the image 1"),
        (GOOD | {"image": ""}, "has the image ''"),
        (GOOD | {"image": "images"}, "is no file"),
        (GOOD | {"image": "images/2.png"}, "is no file"),
        (GOOD | {"image": "/etc/hostname"}, "expected a path below"),
        (GOOD | {"image": "C:\\1.png"}, "expected a path below"),
        (GOOD | {"image": "images/../images/1.png"}, "expected a path below"),
        (GOOD | {"choices": "ab", "answer": 0}, "has the choices 'ab'"),
        (GOOD | {"choices": ["a", ""], "answer": 0}, "has the choices"),
        (GOOD | {"choices": ["a"], "answer": 0}, "has 1 choices, expected 2 to 26"),
        (GOOD | {"choices": ["x"] * 27, "answer": 0}, "has 27 choices"),
        (GOOD | {"choices": ["a", "b"], "answer": 2}, "has the answer 2, expected .* 0 to 1"),
        (GOOD | {"choices": ["a", "b"], "answer": -1}, "has the answer -1"),
        (GOOD | {"choices": ["a", "b"], "answer": True}, "has the answer True"),
        (GOOD | {"choices": ["a", "b"], "answer": "B"}, "has the answer 'B'"),
        (GOOD | {"choices": ["a", "<image>"], "answer": 0}, "has <image> in its question"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_file_and_line(tmp_path: Path, line: Any, message: str) -> None:
    path = written(tmp_path, GOOD, line)
    with pytest.raises(InputError, match=f"^Line 2 of .*questions.jsonl.*{message}"):
        read(path)


def test_a_link_may_stay_inside_the_folder_and_not_lead_out_of_it(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "outside.png")
    path = written(inside, GOOD | {"image": "images/link.png"})
    (inside / "images" / "link.png").symlink_to("1.png")
    assert read(path)[0]["image"] == "images/link.png"
    (inside / "images" / "link.png").unlink()
    (inside / "images" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(InputError, match="links that lead out of it"):
        read(path)
    (inside / "images" / "link.png").unlink()
    (inside / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(InputError, match="links that lead out of it"):
        read(written(inside, GOOD | {"image": "elsewhere/outside.png"}))


def test_files_without_questions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 0 questions, expected at least 1"):
        read(written(tmp_path, ""))
    with pytest.raises(InputError, match=r"none.jsonl cannot be read \(No such file"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(InputError, match=r"latin.jsonl is not UTF-8"):
        read(tmp_path / "latin.jsonl")


WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 0, 0)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 100, (100, 100, 100)),
        ("P", 5, None),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (255, 0, 0, 0), WHITE),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), WHITE),
        ("LA", (7, 255), (7, 7, 7)),
    ],
)
def test_images_are_shown_in_rgb_on_white(tmp_path: Path, mode: str, colour: Any, expected: Any) -> None:
    image = Image.new(mode, (3, 2), colour)
    if mode == "P":
        image.putpalette([*range(12), *([0] * 3), *RED])
        expected = RED
    image.save(tmp_path / "image.png")
    found = open_image(tmp_path / "image.png")
    assert (found.mode, found.size, found.getpixel((1, 1))) == ("RGB", (3, 2), expected)


def test_transparency_of_a_palette_and_inks_are_shown(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([*RED, *BLACK])
    palette.save(tmp_path / "clear.png", transparency=1)
    assert open_image(tmp_path / "clear.png").getpixel((0, 0)) == WHITE
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "inks.tiff")
    assert open_image(tmp_path / "inks.tiff").getpixel((0, 0)) == BLACK


def test_a_photograph_is_turned_as_its_camera_noted(tmp_path: Path) -> None:
    notes = Image.Exif()
    notes[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "photo.jpg", exif=notes)
    assert open_image(tmp_path / "photo.jpg").size == (4, 8)


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("F", "tiff"), ("LAB", "tiff")])
def test_modes_that_rgb_would_change_are_refused_with_the_remedy(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / f"image.{suffix}")
    with pytest.raises(InputError, match=rf"image.{suffix} has the mode {mode}, .*: .* scale them to 8 bits"):
        open_image(tmp_path / f"image.{suffix}")


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tiff"])
def test_a_truncated_image_is_refused(tmp_path: Path, suffix: str) -> None:
    pixels = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path)
    assert open_image(path).size == (64, 64)
    content = path.read_bytes()
    for share in (0.02, 0.5, 0.8):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError, match=rf"image.{suffix} is"):
            open_image(path)


def test_a_damaged_image_a_missing_one_and_one_that_is_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    with pytest.raises(InputError, match=r"There is no image .*image.png"):
        open_image(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"image.png is no image that Pillow knows"):
        open_image(path)
    path.write_text("<svg/>")
    with pytest.raises(InputError, match=r"image.png is no image that Pillow knows"):
        open_image(path)
    Image.new("RGB", (64, 64), "red").save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"image.png is damaged or truncated"):
        open_image(path)


def bomb(path: Path, width: int, height: int) -> None:
    """A PNG of less than a hundred bytes that says that it is this large."""

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", b"") + part(b"IEND", b""))


@pytest.mark.parametrize(("width", "height"), [(10_000, 5_001), (10_000, 10_000), (40_000, 40_000)])
def test_an_image_that_would_fill_the_memory_is_refused_unread(
    tmp_path: Path, width: int, height: int, recwarn: pytest.WarningsRecorder
) -> None:
    bomb(tmp_path / "bomb.png", width, height)
    with pytest.raises(InputError, match=r"bomb.png has .* pixels.*expected at most 50000000: scale it down"):
        open_image(tmp_path / "bomb.png")
    assert not recwarn.list


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (9, 1)])
def test_an_image_of_a_line_is_refused(tmp_path: Path, width: int, height: int) -> None:
    Image.new("RGB", (width, height)).save(tmp_path / "line.png")
    with pytest.raises(InputError, match=rf"line.png has {width} x {height} pixels, expected at least 2 x 2"):
        open_image(tmp_path / "line.png")


def test_an_image_without_pixels_is_refused(tmp_path: Path) -> None:
    bomb(tmp_path / "none.png", 0, 7)
    with pytest.raises(InputError, match=r"none.png"):
        open_image(tmp_path / "none.png")


@pytest.fixture
def prompts(tmp_path: Path) -> tuple[Store, Artifact]:
    """An artifact with the section `evaluation`: two questions about one image and one about none."""
    store = Store(tmp_path / "store")
    with store.writing("prompts") as folder:
        (folder / "evaluation").mkdir()
        written(
            folder / "evaluation",
            {"image": "images/1.png", "question": "What colour?", "answer": "red", "type": "colour"},
            {"image": "images/1.png", "question": "Is it red?", "answer": "yes", "type": "yes/no"},
            {"image": None, "question": "Who?", "answer": "Ann", "type": "other"},
        )
        return store, store.seal(folder, "prompts", {})


def test_the_questions_of_a_section_share_their_images(prompts: tuple[Store, Artifact]) -> None:
    first, second, third = questions_of(*prompts, "evaluation")
    assert (first.text, first.answer, second.text, third.text) == ("What colour?", "red", "Is it red?", "Who?")
    assert first.image is second.image is not None
    assert first.image.getpixel((0, 0)) == RED
    assert third.image is None
    assert [record["type"] for record in records_of(*prompts, "evaluation")] == ["colour", "yes/no", "other"]


def test_a_section_that_is_not_there_is_refused_with_those_that_are(prompts: tuple[Store, Artifact]) -> None:
    with pytest.raises(InputError, match="no section 'validation'; there is: evaluation"):
        records_of(*prompts, "validation")


def test_every_line_is_looked_at_and_those_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, GOOD | {"answer": ""}, GOOD, GOOD | {"answer": None}, {"question": "What?"})
    with pytest.raises(InputError, match=r"^Line 2 of .*It is the first of 3 in 5 questions that cannot be used\.$"):
        read(path)
