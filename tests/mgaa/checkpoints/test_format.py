"""A process that never imported mgaa fails in every way of loading a compressed checkpoint, and is told what to import."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mgaa.checkpoints.format
from mgaa.checkpoints.save import load, save
from mgaa.models.lowrank import low_rank_layers

STRANGER = """if True:
    import json, sys
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaForCausalLM, pipeline

    def plain_config(folder):
        config = AutoConfig.from_pretrained(folder)
        del config.quantization_config
        config.__dict__.pop("transformers_weights", None)
        return config

    def by_hand(folder, strict):
        model = LlamaForCausalLM(plain_config(folder))
        model.load_state_dict(load_file(folder + "/model.safetensors"), strict=strict)

    def offloaded(folder):
        model = auto(folder, device_map={"": "disk"}, offload_folder=folder + "/offload")
        model(torch.arange(20)[None])

    auto, llama = AutoModelForCausalLM.from_pretrained, LlamaForCausalLM.from_pretrained
    ways = {
        "auto": auto,
        "auto, float32": lambda folder: auto(folder, dtype=torch.float32),
        "auto, device_map": lambda folder: auto(folder, device_map="cpu"),
        "auto, device_map auto": lambda folder: auto(folder, device_map="auto"),
        "auto, use_safetensors": lambda folder: auto(folder, use_safetensors=True),
        "auto, trust_remote_code": lambda folder: auto(folder, trust_remote_code=True),
        "auto, output_loading_info": lambda folder: auto(folder, output_loading_info=True),
        "class": llama,
        "class, bfloat16 on a device": lambda folder: llama(folder, dtype=torch.bfloat16, device_map="cpu"),
        "offloaded to disk, at its first use": offloaded,
        "headless": AutoModel.from_pretrained,
        "pipeline": lambda folder: pipeline("text-generation", model=folder),
        "pipeline on a device": lambda folder: pipeline("text-generation", model=folder, device_map="cpu"),
        "config without the entry": lambda folder: llama(folder, config=plain_config(folder)),
        "state dict": lambda folder: by_hand(folder, strict=True),
        "state dict, not strict": lambda folder: by_hand(folder, strict=False),
    }
    if "noticed" in sys.argv[1]:
        ways["auto, sizes ignored"] = lambda folder: auto(folder, ignore_mismatched_sizes=True)
    outcome = {}
    for name, way in ways.items():
        try:
            way(sys.argv[1])
            outcome[name] = "LOADED"
        except Exception as error:
            outcome[name] = f"{type(error).__name__}: {error}"
    assert "mgaa" not in sys.modules
    print(json.dumps(outcome))
"""


def outcome_of_a_stranger(folder: Path) -> dict[str, str]:
    run = subprocess.run([sys.executable, "-c", STRANGER, str(folder)], capture_output=True, text=True, check=True)
    outcome: dict[str, str] = json.loads(run.stdout.splitlines()[-1])
    return outcome


@pytest.fixture
def model(tiny: Callable[..., PreTrainedModel], compress: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return compress(tiny("llama"))


@pytest.mark.slow
def test_a_process_without_mgaa_fails_in_every_way_and_is_told_what_to_import(
    model: PreTrainedModel, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save(model, words, tmp_path / "noticed")
    outcome = outcome_of_a_stranger(tmp_path / "noticed")
    assert "LOADED" not in outcome.values(), outcome
    uninformed = {way for way, said in outcome.items() if "run `import mgaa` before you load them" not in said}
    assert uninformed == {"state dict", "state dict, not strict", "config without the entry"}, outcome


@pytest.mark.slow
def test_a_checkpoint_that_lost_its_notice_still_fails_in_every_way(
    model: PreTrainedModel, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "lost")
    words.save_pretrained(tmp_path / "lost")
    outcome = outcome_of_a_stranger(tmp_path / "lost")
    assert "LOADED" not in outcome.values(), outcome


@pytest.mark.slow
def test_a_process_without_mgaa_cannot_load_a_model_that_was_taken_apart(
    tiny: Callable[..., PreTrainedModel],
    compress: Callable[..., PreTrainedModel],
    words: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    """Fused, transposed and stacked layers too, with the notice and without."""
    script = """if True:
        import pathlib, sys
        from transformers import AutoModel, AutoModelForCausalLM
        for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
            for kind in (AutoModel, AutoModelForCausalLM):
                try:
                    kind.from_pretrained(folder)
                    print(folder.name, "LOADED")
                except Exception:
                    print(folder.name, "failed")
    """
    for family in ("phi3", "gpt2", "gpt_neox", "falcon", "mixtral", "qwen2_moe"):
        model = compress(tiny(family), bias=False)
        save(model, words, tmp_path / f"{family} noticed")
        model.save_pretrained(tmp_path / f"{family} lost")
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert run.stdout.count("failed") == 2 * 2 * 6, run.stdout


def test_importing_the_format_again_does_no_harm(
    model: PreTrainedModel, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save(model, words, tmp_path / "saved")
    importlib.reload(mgaa.checkpoints.format)
    assert low_rank_layers(load(tmp_path / "saved", device="cpu")[0])
