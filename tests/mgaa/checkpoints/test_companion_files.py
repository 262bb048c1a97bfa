"""What travels with a model beside its weights, and what never does."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import mgaa
from mgaa.checkpoints.companion_files import LARGEST_TEXT, texts_of
from mgaa.checkpoints.folder import backbone_files
from mgaa.errors import InputError

Tiny = Callable[..., PreTrainedModel]
TRAVEL = {
    "LICENSE": b"do what you like\n",
    "License-3rd.txt": "für alle\n".encode("latin-1"),
    "NOTICE": b"made by others\n",
    "USE_POLICY.md": b"be good\n",
    "GEMMA_TERMS.txt": b"terms\n",
    "usage notes.md": b"how it is used\n",
    "tokenizer.model": b"\x0a\x00a SentencePiece model",
}
STAY = {
    "README.md": b"# another model\n",
    "modeling_own.py": b"import os\n",
    "weights.bin": b"\x80\x02",
    "training.json": b"{}",
    ".gitattributes": b"*.bin lfs\n",
    "large.txt": b"a" * (LARGEST_TEXT + 1),
    "binary.txt": b"\x00\x01",
    "LICENSE.exe": b"MZ",
    "adapter.safetensors": b"x",
}


@pytest.fixture
def source(tiny: Tiny, words: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A model in a folder as the Hub has them, with a link out of it."""
    folder = tmp_path / "source"
    mgaa.save(tiny("qwen3"), words, folder)
    for name, content in {**TRAVEL, **STAY}.items():
        (folder / name).write_bytes(content)
    (tmp_path / "secret.txt").write_text("nobody's business")
    os.symlink(tmp_path / "secret.txt", folder / "notes.txt")
    os.symlink("nowhere", folder / "dangling.md")
    (folder / "LICENSES").mkdir()
    return folder


def written(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TRAVEL if (folder / name).exists()}


def test_a_compressed_model_has_the_licence_the_notices_and_the_vocabulary_of_its_backbone(
    source: Path, tmp_path: Path
) -> None:
    model, tokenizer = mgaa.load(source, device="cpu")
    mgaa.compress_(model, torch.arange(60).reshape(4, 15), factors="whitened")
    mgaa.save(model, tokenizer, tmp_path / "low")
    mgaa.densify_folder(tmp_path / "low", tmp_path / "folded")
    for folder in (tmp_path / "low", tmp_path / "folded"):
        assert written(folder) == TRAVEL
        assert not {path.name for path in folder.iterdir()} & {*STAY, "notes.txt", "dangling.md", "LICENSES"}
        mgaa.load(folder, device="cpu")


def test_models_of_transformers_bring_theirs_as_well(source: Path, tmp_path: Path) -> None:
    mgaa.save(AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source), tmp_path / "again")
    assert written(tmp_path / "again") == TRAVEL


def test_a_licence_of_the_user_in_the_target_is_never_replaced(source: Path, tmp_path: Path) -> None:
    model, tokenizer = mgaa.load(source, device="cpu")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "LICENSE").write_text("mine")
    with pytest.raises(mgaa.UsageError, match="LICENSE"):
        mgaa.save(model, tokenizer, tmp_path / "own")
    assert (tmp_path / "own" / "LICENSE").read_text() == "mine"


def test_they_travel_from_one_saved_folder_to_the_next(source: Path, tmp_path: Path) -> None:
    mgaa.save(*mgaa.load(source, device="cpu"), tmp_path / "one")
    mgaa.save(*mgaa.load(tmp_path / "one", device="cpu"), tmp_path / "two")
    assert written(tmp_path / "two") == TRAVEL


def test_a_model_that_came_from_no_folder_brings_nothing(
    tiny: Tiny, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    mgaa.save(tiny(), words, tmp_path / "model")
    assert texts_of(tmp_path / "model") == []


def test_texts_are_part_of_what_a_backbone_is(source: Path) -> None:
    names = {path.name for path in backbone_files(source)}
    assert names >= TRAVEL.keys()
    assert not names & {*STAY, "notes.txt"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_licence_that_cannot_be_read_is_an_error(source: Path) -> None:
    (source / "LICENSE").chmod(0)
    with pytest.raises(InputError, match=r"LICENSE cannot be read .*make it readable"):
        backbone_files(source)
