"""A backbone with an expert that no calibration token reaches, from the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from tests.support.laboratory import TinyProject

pytestmark = pytest.mark.slow

LONELY = [f"model.layers.1.mlp.experts.3.{name}_proj" for name in ("gate", "up", "down")]
QUICK = ("evaluation.tasks=[]", "evaluation.samples.number=0")


@pytest.fixture
def mixture(fresh: TinyProject, tmp_path: Path) -> Path:
    """A small mixture whose last expert of the last block is never chosen, with the tokenizer of the laboratory."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e4}
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 1, "rope_parameters": rope}
    config = GptOssConfig(vocab_size=320, initializer_range=0.2, max_position_embeddings=128, **sizes, **experts)
    model = GptOssForCausalLM(config)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.router.bias.zero_()
        model.model.layers[1].mlp.router.bias[3] = -1e3
    folder = tmp_path / "mixture"
    model.save_pretrained(folder)
    for path in fresh.model.glob("tokenizer*"):
        shutil.copy(path, folder)
    (folder / "LICENSE").write_text("do what you like\n")
    return folder


@pytest.mark.parametrize("shards", [1, 2])
def test_its_matrices_stay_dense_where_the_run_says_so(fresh: TinyProject, mixture: Path, shards: int) -> None:
    source = f"backbone.source={mixture}"
    refused = fresh.run(source, *QUICK, f"statistics.shards={shards}")
    assert refused.code == 3
    assert "experts.3.gate_proj received none of the calibration tokens" in refused.message
    assert "statistics.unreached=dense" in refused.message
    done = fresh.run(
        source, *QUICK, f"statistics.shards={shards}", "statistics.unreached=dense", "ratios.compression=0.3"
    )
    assert done.code == 0, done.message
    allocations = json.loads((fresh.root / "results" / "allocation.json").read_text())
    for allocation in allocations.values():
        dense = {name: entry for name, entry in allocation["matrices"].items() if entry.get("unreached")}
        assert [*dense] == LONELY
        assert {entry["rank"] for entry in dense.values()} == {None}
        assert allocation["linear_parameters"] <= allocation["budget"]
    (checkpoint,) = fresh.artifacts("checkpoint")[-1:]
    assert (checkpoint / "LICENSE").read_text() == "do what you like\n"
