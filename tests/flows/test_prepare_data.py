"""Every kind of local source goes through the flow into one form, and the export names what was read."""

import json

import pytest

from flows.prepare_data import prepare_data
from tasks.steps.read_texts import source_content
from tests.support.laboratory import Outcome, TinyProject

pytestmark = pytest.mark.slow


def test_text_jsonl_and_folders_become_documents(fresh: TinyProject) -> None:
    texts = fresh.texts.read_text(encoding="utf-8").split("\n\n")
    (fresh.root / "rows.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in texts[:20]))
    (fresh.root / "folder").mkdir()
    (fresh.root / "folder" / "dev.txt").write_text("\n\n".join(texts[20:30]))
    (fresh.root / "folder" / "other.txt").write_text("not read")
    sources = [
        f"data.calibration.source={fresh.root / 'rows.jsonl'}",
        "data.calibration.field=body",
        "data.calibration.to=1.0",
        f"data.validation.source={fresh.root / 'folder'}",
        "data.validation.split=dev",
        "data.validation.from=0.0",
        "data.validation.to=1.0",
        "data.evaluation.from=0.5",
    ]
    assert fresh.run(*sources, flow=prepare_data) == Outcome(0, "", {"read_texts": 1})
    prepared = fresh.root / "data" / "prepared"
    found = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in prepared.glob("*.jsonl")
    }
    assert found == {"calibration": texts[:20], "validation": texts[20:30], "evaluation": texts[60:]}
    card = json.loads((prepared / "card.json").read_text())["sections"]
    assert [card[name]["files"][0]["name"] for name in found] == [
        {"calibration": "rows.jsonl", "validation": "dev.txt", "evaluation": "texts.txt"}[name] for name in found
    ]
    assert fresh.run(*sources, flow=prepare_data) == Outcome(0, "", {})


def test_a_path_below_the_home_folder_is_identified_by_its_content(
    empty: TinyProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(empty.root))
    assert source_content("~/texts.txt") == source_content(str(empty.texts)) != {}


def test_an_edited_text_is_read_again(fresh: TinyProject) -> None:
    texts = fresh.root / "texts.txt"
    sources = [f"data.{name}.source={texts}" for name in ("calibration", "validation", "evaluation")]
    texts.write_text(fresh.texts.read_text(encoding="utf-8"))
    assert fresh.run(*sources, flow=prepare_data).executed == {"read_texts": 1}
    texts.write_text(texts.read_text().replace("a", "o", 1))
    assert fresh.run(*sources, flow=prepare_data).executed == {"read_texts": 1}
