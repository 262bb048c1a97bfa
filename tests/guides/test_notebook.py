"""The notebook runs from top to bottom, and what it shows is stored in it."""

import json
import runpy
from pathlib import Path

import pytest

from demo import smollm2
from tests.support.processes import ROOT

run_notebook = runpy.run_path(str(ROOT / "docs" / "notebook.py"))["run_notebook"]
NOTEBOOK = ROOT / "examples" / "smollm2.ipynb"


def said(cell: dict[str, list[dict[str, list[str]]]]) -> str:
    return "".join(line for output in cell["outputs"] for line in output.get("text", []))


def write_texts(folder: Path) -> Path:
    """Rows of any text, here of the documentation."""
    documents = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    for split, chosen in (("calibration", documents[::2]), ("test", documents[1::2])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen))
    return folder


def test_the_outputs_of_every_cell_are_stored_and_small() -> None:
    cells = [each for each in json.loads(NOTEBOOK.read_text())["cells"] if each["cell_type"] == "code"]
    assert [each["execution_count"] for each in cells] == [*range(1, len(cells) + 1)]
    assert all(each["outputs"] for each in cells[1:])
    assert "the same weights: True" in said(cells[-1])
    assert NOTEBOOK.stat().st_size < 200_000


@pytest.mark.slow
def test_it_runs_on_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODEL": ROOT / "models" / "demo", "TEXTS": write_texts(tmp_path), "SEQUENCES": 8}.items():
        monkeypatch.setenv(name, str(value))
    assert "the same weights: True" in said(run_notebook(NOTEBOOK)["cells"][-1])


@pytest.mark.nightly
def test_it_runs_on_smollm2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smollm2.make_backbone(tmp_path / "model")
    smollm2.make_texts(tmp_path / "texts")
    monkeypatch.setenv("MODEL", str(tmp_path / "model"))
    monkeypatch.setenv("TEXTS", str(tmp_path / "texts"))
    assert "the same weights: True" in said(run_notebook(NOTEBOOK)["cells"][-1])
