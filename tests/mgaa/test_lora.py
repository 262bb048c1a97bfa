"""LoRA of peft on a compressed model, by the names of the dense one: nothing changes at first, it learns, is kept, and merges exactly."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import mgaa
import mgaa.lora
from mgaa.errors import UsageError
from mgaa.models.lowrank import LowRankLinear, low_rank_layers

Build = Callable[..., PreTrainedModel]
Forward = Callable[[Any], Tensor]
NAMES: dict[str, dict[str, Any]] = {
    "usual names": {"target_modules": ["q_proj", "v_proj"]},
    "all linears": {"target_modules": "all-linear"},
    "peft's defaults": {},
}
FAMILIES = ["llama", "gpt2", "phi3", "gpt_neox", "mixtral", "qwen3"]
UNKNOWN = ("phi3", "mixtral")
"""Of which peft has no defaults, dense or compressed."""


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """peft warns of nothing that a user should not see."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def randomise(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter, std=0.1)


def config(**given: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, **given)


@pytest.mark.parametrize("way", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_start_as_nothing_are_kept_and_merge_to_the_same_function(
    tiny: Build, compress: Build, words: PreTrainedTokenizerFast, logits: Forward, family: str, way: str, tmp_path: Path
) -> None:
    if way == "usual names" and family in ("gpt2", "phi3", "gpt_neox"):
        pytest.skip("its q, k and v are one layer")
    if way == "peft's defaults" and family in UNKNOWN:
        pytest.skip("peft has none for it")
    mgaa.save(compress(tiny(family), keep=0.3), words, tmp_path / "model")
    model, tokenizer = mgaa.load(tmp_path / "model", device="cpu")
    before = logits(model)
    tuned = get_peft_model(model, config(**NAMES[way]))
    assert torch.equal(logits(tuned), before)
    randomise(tuned)
    after = logits(tuned)
    assert not torch.allclose(after, before, atol=1e-2)
    tuned.save_pretrained(tmp_path / "adapter")
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    torch.testing.assert_close(logits(again), after, rtol=1e-5, atol=1e-5)
    merged = again.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(logits(merged), after, rtol=1e-3, atol=1e-4)
    mgaa.save(merged, tokenizer, tmp_path / "merged")
    loaded = logits(mgaa.load(tmp_path / "merged", device="cpu")[0])
    torch.testing.assert_close(loaded, logits(merged), rtol=1e-5, atol=1e-5)


def test_it_learns(tiny: Build, compress: Build) -> None:
    tokens = torch.arange(40).reshape(2, 20) * 7 % 60
    tuned = get_peft_model(compress(tiny(), keep=0.3), config(target_modules=["q_proj", "down_proj"]))
    optimiser = torch.optim.Adam((p for p in tuned.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = tuned(tokens, labels=tokens).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name, p in tuned.named_parameters() if p.requires_grad} == {
        "q_proj",
        "down_proj",
    }


def test_a_merged_layer_has_the_rank_of_both_and_comes_back(tiny: Build, compress: Build, logits: Forward) -> None:
    model = compress(tiny(), keep=0.3)
    ranks = {name: layer.rank for name, layer in low_rank_layers(model).items() if name.endswith("q_proj")}
    before = logits(model)
    tuned = get_peft_model(model, config(target_modules=["q_proj"]))
    randomise(tuned)
    tuned.merge_adapter(safe_merge=True)
    for name, rank in ranks.items():
        base = tuned.base_model.model.get_submodule(name).get_base_layer()
        assert isinstance(base, LowRankLinear)
        assert base.rank == rank + 3
    tuned.unmerge_adapter()
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned), before)


def test_the_rank_that_is_too_wide_becomes_a_dense_matrix_of_the_same_function(
    tiny: Build, compress: Build, logits: Forward
) -> None:
    tuned = get_peft_model(
        compress(tiny(), keep=0.3, bias=False), LoraConfig(r=16, target_modules=["q_proj", "v_proj"])
    )
    randomise(tuned)
    after = logits(tuned)
    merged = tuned.merge_and_unload()
    assert type(merged.get_submodule("model.layers.0.self_attn.q_proj")) is nn.Linear
    torch.testing.assert_close(logits(merged), after, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("given", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"lora_bias": True}])
def test_what_starts_from_the_dense_matrix_is_refused(tiny: Build, compress: Build, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"no dense matrix to start from: leave both at peft's defaults, or fold"):
        get_peft_model(compress(tiny(), keep=0.3), config(target_modules=["q_proj"], **given))


def test_variants_of_lora_are_refused(tiny: Build, compress: Build) -> None:
    with pytest.raises(ValueError, match="use_dora"):
        get_peft_model(compress(tiny(), keep=0.3), config(target_modules=["q_proj"], use_dora=True))


def test_dense_layers_stay_with_peft(tiny: Build) -> None:
    tuned = get_peft_model(tiny(), config(target_modules=["q_proj"]))
    layer = tuned.base_model.model.model.layers[0].self_attn.q_proj
    assert type(layer) is peft.tuners.lora.Linear
