"""The blocks of CONTRIBUTING.md, executed; that of a factorizer in tests/mgaa/test_new_method.py."""

from pathlib import Path

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM

import mgaa
from mgaa.models.architecture_schema import Architecture, Sublayer
from mgaa.models.architectures import matrices_of
from mgaa.models.entries import ARCHITECTURES
from mgaa.models.lowrank import low_rank_layers
from tests.support.guide import GUIDES, Reader, blocks
from tests.support.processes import ROOT

BLOCKS = blocks(ROOT / "CONTRIBUTING.md")


def test_the_factorizer_is_the_one_of_the_researcher() -> None:
    (ours,) = (block for block in BLOCKS if block.file.startswith("mgaa/factors/"))
    assert ours in blocks(GUIDES / "researcher.md")


def test_the_entry_of_an_architecture_compresses_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Architecture] = {}
    (block,) = (block for block in BLOCKS if block.language == "python" and not block.file)
    exec(block.text, {"Architecture": Architecture, "Sublayer": Sublayer}, names)
    monkeypatch.setitem(ARCHITECTURES, "gptj", names["entry"])
    torch.manual_seed(0)
    config = GPTJConfig(vocab_size=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=8, n_positions=64)
    model = GPTJForCausalLM(config).eval()
    assert len(matrices_of(model)) == 12
    report = mgaa.compress_(model, torch.arange(64).reshape(4, 16), compression=0.3)
    assert 0.3 <= report.compression < 0.35
    assert len(low_rank_layers(model)) > 0
    assert model(torch.arange(16).reshape(1, 16)).logits.isfinite().all()


@pytest.mark.slow
def test_a_task_and_a_flow_of_two_files_run(project: Path) -> None:
    reader = Reader(project)
    for block in BLOCKS:
        if block.file.startswith(("tasks/", "flows/")) or "flows.words" in block.text or block.language == "text":
            reader.do(block)
