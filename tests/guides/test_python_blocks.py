"""The Python blocks of README.md and of the guides that no other test follows, executed on tiny models under the paths that they name."""

from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import mgaa
from mgaa.models.lowrank import low_rank_layers
from tests.support.guide import GUIDES, blocks
from tests.support.laboratory import documents, write_model
from tests.support.processes import ROOT
from tests.support.vision import multimodal_model

pytestmark = pytest.mark.slow

FEWER = {"steps=300, batch=16": "steps=2, batch=4", "groups=4)": "groups=2, evaluations=4, initial=2, selection=4)"}
"""What would take minutes, and what is run instead."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of a reader with the models that the documents name."""
    root = tmp_path_factory.mktemp("reader")
    (root / "path" / "to").mkdir(parents=True)
    for name in ("model", "chat-model"):
        write_model(root / "path" / "to" / name, documents(seed=1))
    (root / "path" / "to" / "llava").symlink_to(multimodal_model())
    with chdir(root):
        yield root


def execute(document: Path, **names: Any) -> dict[str, Any]:
    """Run the Python blocks of a document in one namespace, and return it."""
    texts = [block.text for block in blocks(document) if block.language == "python"]
    assert texts, f"{document.name} has no Python block"
    for text in texts:
        for whole, part in FEWER.items():
            text = text.replace(whole, part)
        exec(text, names)
    return names


def windows(number: int) -> torch.Tensor:
    """Random token ids that the tiny models know."""
    return torch.randint(2, 300, (number, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def readme(folder: Path) -> dict[str, Any]:
    return execute(ROOT / "README.md", texts=[text[:100] for text in documents(seed=2)[:24]])


def test_the_six_lines_of_the_readme_leave_a_model_that_loads(folder: Path, readme: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    assert readme["report"].compression >= 0.2
    assert low_rank_layers(AutoModelForCausalLM.from_pretrained("compressed"))


def test_the_guide_of_large_models_streams_and_makes_the_result_plain(folder: Path, readme: dict[str, Any]) -> None:
    names = execute(GUIDES / "large-models.md")
    assert names["model"](windows(1)).logits.isfinite().all()
    plain, _ = mgaa.load("plain")
    assert not low_rank_layers(plain)


def test_the_guide_of_methods_compresses_recovers_searches_and_reuses_an_allocation(folder: Path) -> None:
    names = execute(GUIDES / "methods.md", tokens=windows(32), validation=windows(8))
    assert [point.step for point in names["curve"].points] == [0, 1, 2]
    assert len(names["trials"]) == 4
    assert Path("base.json").is_file()
    assert names["report"].compression >= 0.3  # the last of the sweep


def test_the_guide_of_vision_language_models_calibrates_on_questions(folder: Path) -> None:
    names = execute(GUIDES / "vision-language.md", image=Image.new("RGB", (64, 64), "red"))
    assert names["report"].compression >= 0.2
