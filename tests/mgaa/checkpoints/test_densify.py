"""A densified model computes what the low-rank one did, and its checkpoint needs nothing but transformers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mgaa.checkpoints.densify import densify
from mgaa.checkpoints.save import apply_factors, load, save
from mgaa.errors import UsageError
from mgaa.models.architectures import matrices_of
from mgaa.models.fused import unfuse_
from mgaa.models.lowrank import low_rank_layers
from tests.mgaa.conftest import FAMILIES, reload, svd_factors

Build = Callable[..., PreTrainedModel]
Forward = Callable[[PreTrainedModel], Tensor]
PLAIN = [(family, False) for family in FAMILIES]
BIASED = [
    *((family, True) for family in ("llama", "mistral", "qwen2", "granite", "starcoder2", "phi", "opt", "gpt2")),
    *((family, True) for family in ("gpt_neox", "falcon", "falcon, grouped heads", "smollm3", "gpt_oss")),
]
"""Families that have room for a bias on every linear, or that are a Llama in all but name."""


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "bias"), PLAIN + BIASED)
def test_a_densified_model_computes_the_same_before_and_after_a_round_trip(
    family: str, bias: bool, tied: bool, tiny: Build, compress: Build, logits: Forward, tmp_path: Path
) -> None:
    model = compress(tiny(family, tie_word_embeddings=tied).double(), bias=bias)
    expected = logits(model)
    dense = densify(model)
    torch.testing.assert_close(logits(dense), expected, rtol=1e-10, atol=1e-10)
    dense.save_pretrained(tmp_path)
    assert b"mgaa" not in (tmp_path / "config.json").read_bytes()
    loaded, report = reload(tmp_path, output_loading_info=True, experts_implementation="eager")
    assert not any(report.values())
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in dense.state_dict().items())
    torch.testing.assert_close(logits(loaded), logits(dense), rtol=1e-4, atol=1e-5)  # buffers are those of float32


@pytest.mark.parametrize(("family", "bias"), [("mistral", True), ("qwen2", True)])
def test_a_family_without_room_for_biases_becomes_a_llama(
    family: str, bias: bool, tiny: Build, compress: Build
) -> None:
    dense = densify(compress(tiny(family), bias=bias))
    assert dense.config.model_type == "llama"
    assert dense.config.attention_bias
    assert dense.config.mlp_bias
    assert dense.generate(torch.arange(20)[None], max_new_tokens=3, min_new_tokens=3).shape == (1, 23)


@pytest.mark.parametrize(("family", "bias"), [*PLAIN, ("llama", True)])
def test_a_family_with_room_for_its_biases_stays_what_it_is(
    family: str, bias: bool, tiny: Build, compress: Build
) -> None:
    model = compress(tiny(family), bias=bias)
    assert densify(model) is model
    assert model.config.model_type == family.partition(",")[0]
    assert not low_rank_layers(model)


def test_biases_of_the_attention_alone_fit_into_qwen3(tiny: Build, compress: Build, logits: Forward) -> None:
    model = compress(tiny("qwen3", attention_bias=True).double(), bias=False)
    expected = logits(model)
    torch.testing.assert_close(logits(densify(model)), expected, rtol=1e-10, atol=1e-10)
    assert model.config.attention_bias


@pytest.mark.parametrize(
    ("family", "settings", "remedy"),
    [
        ("qwen3", {}, "whitened, which adds no bias, or keep the low-rank checkpoint$"),
        ("mistral", {"sliding_window": 16}, "or set model.config.sliding_window = None if no context exceeds its 16"),
    ],
)
def test_biases_that_no_class_can_hold_are_refused_and_the_model_is_left_as_it_was(
    family: str, settings: dict[str, int], remedy: str, tiny: Build, compress: Build, logits: Forward
) -> None:
    model = compress(tiny(family, **settings))
    before = logits(model)
    with pytest.raises(UsageError, match=rf"has no bias for model.layers.0.mlp.down_proj.*{remedy}"):
        densify(model)
    assert torch.equal(logits(model), before)


@pytest.mark.slow
def test_a_process_without_mgaa_loads_a_densified_checkpoint(
    tiny: Build, compress: Build, logits: Forward, tmp_path: Path
) -> None:
    script = """if True:
        import sys, torch
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM
        with torch.no_grad():
            model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
            save_file({"logits": model(torch.arange(40).reshape(2, 20) * 7 % 60).logits}, sys.argv[2])
        assert "mgaa" not in sys.modules
    """
    dense = densify(compress(tiny("mistral")))
    dense.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    found = tmp_path / "logits.safetensors"
    subprocess.run([sys.executable, "-c", script, tmp_path / "dense", found], check=True, capture_output=True)
    assert torch.equal(load_file(found)["logits"], logits(dense))


@pytest.mark.parametrize("family", ["falcon", "falcon, one norm", "llama", "granite"])
def test_a_bias_on_one_linear_gives_the_others_zeros(family: str, tiny: Build, logits: Forward, tmp_path: Path) -> None:
    """Also on fused layers whose parts have all stayed dense."""
    model = unfuse_(tiny(family, bias=False) if "falcon" in family else tiny(family)).double()
    last = [matrix.name for matrix in matrices_of(model)][-1]
    linear = model.get_submodule(last)
    apply_factors(model, {last: svd_factors(linear, 0.5, True)})
    expected = logits(model)
    dense = densify(model)
    torch.testing.assert_close(logits(dense), expected, rtol=1e-10, atol=1e-10)
    dense.save_pretrained(tmp_path)
    assert not any(AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)[1].values())


@pytest.mark.parametrize("family", ["mixtral", "olmoe", "phi3"])
def test_what_was_loaded_is_densified_under_the_names_of_the_dense_model(
    family: str, tiny: Build, compress: Build, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save(tiny(family), words, tmp_path / "dense")
    save(compress(tiny(family), bias=False), words, tmp_path / "low")
    densify(load(tmp_path / "low", device="cpu")[0]).save_pretrained(tmp_path / "again")
    assert (
        load_file(tmp_path / "again/model.safetensors").keys() == load_file(tmp_path / "dense/model.safetensors").keys()
    )
