"""FFNs narrower than their config: saved, loaded with ordinary tools, padded to plain checkpoints, and refused where a config lies."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import mgaa
from mgaa.checkpoints.save import apply_channels
from mgaa.errors import InputError, UsageError
from mgaa.models.fused import unfuse_
from mgaa.models.widths import ffn_widths
from tests.mgaa.allocation.test_channels import DENSE_FFNS
from tests.mgaa.conftest import reload

Tiny = Callable[..., PreTrainedModel]
Forward = Callable[[PreTrainedModel], Tensor]
KEPT = {0: torch.arange(0, 48, 3), 1: torch.arange(5, 48, 2)}
"""Channels of the two blocks, of different number."""


def pruned(tiny: Tiny, family: str = "llama", kept: dict[int, Tensor] = KEPT, **settings: object) -> PreTrainedModel:
    model = unfuse_(tiny(family, **settings))
    apply_channels(model, kept)
    return model


@pytest.mark.parametrize("family", DENSE_FFNS)
def test_a_pruned_model_is_loaded_as_it_was_saved(
    family: str, tiny: Tiny, words: PreTrainedTokenizerFast, logits: Forward, tmp_path: Path
) -> None:
    model = pruned(tiny, family)
    mgaa.save(model, words, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert (config["widths"], config["modules"]) == ([16, 22], {})
    loaded = reload(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
    )
    torch.testing.assert_close(logits(loaded), logits(model))
    assert ffn_widths(loaded) == [16, 22]


def test_a_block_that_is_as_wide_as_the_config_says_null(tiny: Tiny) -> None:
    assert pruned(tiny, kept={1: torch.arange(40)}).config.quantization_config.widths == [None, 40]


def test_a_pruned_model_is_saved_again_as_the_same_bytes(
    tiny: Tiny, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    mgaa.save(pruned(tiny), words, tmp_path / "once")
    mgaa.save(*mgaa.load(tmp_path / "once", device="cpu"), tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()


def test_pruned_and_low_rank_sublayers_live_in_one_model(
    tiny: Tiny, words: PreTrainedTokenizerFast, logits: Forward, tmp_path: Path
) -> None:
    model = tiny("qwen2")
    tokens = torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(0))
    mgaa.compress_(model, tokens, compression=0.4, channels="weighted")
    mgaa.save(model, words, tmp_path)
    torch.testing.assert_close(logits(reload(tmp_path)), logits(model))


def test_a_headless_model_loads_its_narrow_ffns(tiny: Tiny, words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    mgaa.save(pruned(tiny), words, tmp_path)
    assert AutoModel.from_pretrained(tmp_path).layers[0].mlp.down_proj.in_features == 16


@pytest.mark.slow
def test_a_process_without_mgaa_refuses_a_pruned_model(
    tiny: Tiny, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    mgaa.save(pruned(tiny), words, tmp_path)
    script = "import sys; from transformers import AutoModelForCausalLM as A; A.from_pretrained(sys.argv[1])"
    run = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "import mgaa" in run.stderr


@pytest.mark.parametrize("family", DENSE_FFNS)
def test_different_widths_are_padded_to_a_plain_checkpoint_that_computes_the_same(
    family: str, tiny: Tiny, logits: Forward, tmp_path: Path
) -> None:
    model = pruned(tiny, family).double()
    before = logits(model)
    plain = mgaa.densify(model)
    plain.save_pretrained(tmp_path)
    assert b"mgaa" not in (tmp_path / "config.json").read_bytes()
    torch.testing.assert_close(logits(plain), before, rtol=1e-9, atol=1e-9)
    again = reload(tmp_path)  # whose buffers are those of float32
    torch.testing.assert_close(logits(again), before, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_process_without_mgaa_loads_padded_widths(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("llama", "gpt2"):
        mgaa.densify(pruned(tiny, name)).save_pretrained(tmp_path / name)
    script = "import sys; from transformers import AutoModelForCausalLM as A; [*map(A.from_pretrained, sys.argv[1:])]"
    folders = [tmp_path / name for name in ("llama", "gpt2")]
    subprocess.run([sys.executable, "-c", script, *folders], check=True, capture_output=True)


def test_equal_widths_become_that_of_the_plain_config(tiny: Tiny) -> None:
    plain = mgaa.densify(pruned(tiny, kept=dict.fromkeys((0, 1), torch.arange(20))))
    assert (plain.config.intermediate_size, ffn_widths(plain)) == (20, [])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([16], r"the widths \[16\], expected one for each of 2 blocks"),
        ("16", r"the widths '16', expected one for each of 2"),
        ([16, 49], r"block 1 the width 49, expected null or 1 to 48"),
        ([0, 16], r"block 0 the width 0, expected null or 1 to 48"),
        ([True, 16], r"block 0 the width True"),
        ([16.0, 16], r"block 0 the width 16\.0"),
    ],
)
def test_a_config_with_other_widths_is_refused(
    given: Any, message: str, tiny: Tiny, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    mgaa.save(pruned(tiny), words, tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["widths"] = given
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=message + r".*config\.json was edited or is damaged"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({2: torch.arange(3)}, r"there is no block 2 in a model with 2 blocks"),
        ({0: torch.tensor([0, 48])}, r"2 channels to keep of mlp\.gate_proj are not all between 0 and 47"),
        ({0: torch.tensor([], dtype=torch.int64)}, r"the 0 channels to keep of mlp\.gate_proj"),
    ],
)
def test_channels_that_are_not_there_are_refused(kept: dict[int, Tensor], message: str, tiny: Tiny) -> None:
    with pytest.raises(UsageError, match=message):
        pruned(tiny, kept=kept)


def test_an_ffn_is_pruned_or_factorized(tiny: Tiny, compress: Callable[..., PreTrainedModel]) -> None:
    with pytest.raises(UsageError, match=r"mlp\.gate_proj of block 0 is a LowRankLinear, expected nn\.Linear"):
        apply_channels(compress(tiny("llama")), KEPT)
