"""A head is tied to the embedding by what the files hold: the same logits in transformers, in memory, streamed, saved, and dense again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mgaa.checkpoints.densify import densify, densify_folder
from mgaa.checkpoints.meta_model import skeleton
from mgaa.checkpoints.save import apply_factors, load, save, save_blockwise
from mgaa.models.architectures import architecture_of
from mgaa.models.fused import unfuse_
from mgaa.models.lowrank import Factors, low_rank_layers
from mgaa.plan.layout import layout_of
from tests.mgaa.conftest import reload
from tests.support.layouts import WEIGHTS, Tensors, lay_out

Tiny = Callable[..., PreTrainedModel]
Forward = Callable[[PreTrainedModel], Tensor]
NAMES = {
    "llama": ("lm_head.weight", "model.embed_tokens.weight"),
    "mistral": ("lm_head.weight", "model.embed_tokens.weight"),  # with biases, dense again, it becomes a Llama
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "gpt_neox": ("embed_out.weight", "gpt_neox.embed_in.weight"),
    "llava": ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
    "qwen2_5_vl": ("lm_head.weight", "model.embed_tokens.weight"),
}
"""Of head and embedding in files."""
HELD = ("the head", "the embedding", "both, equal", "both, different")
CASES = [
    *(("llama", held) for held in HELD),
    *((family, held) for family in NAMES if family != "llama" for held in ("the head", "both, different")),
]


@pytest.fixture
def tied(tmp_path: Path, tiny: Tiny, words: PreTrainedTokenizerFast) -> Callable[[str, str], Path]:
    """A checkpoint whose config says that the weights are tied, and whose file holds what is said."""

    def write(family: str, held: str) -> Path:
        head, embedding = NAMES[family]

        def layout(tensors: Tensors) -> Tensors:
            weight = tensors.pop(embedding)
            other = weight.flip(0) if held == "both, different" else weight.clone()
            found = {embedding: weight, head: other}
            names = {"the head": [head], "the embedding": [embedding]}.get(held, [head, embedding])
            return tensors | {name: found[name] for name in names}

        place = tmp_path / "backbone"
        tiny(family, tie_word_embeddings=True).save_pretrained(place)
        words.save_pretrained(place)
        lay_out(place, layout)
        return place

    return write


def both(place: Path) -> list[PreTrainedModel]:
    return [load(place, device="cpu", stream=stream)[0] for stream in (False, True)]


def is_tied(model: PreTrainedModel) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize(("family", "held"), CASES)
def test_a_model_has_the_head_that_its_files_hold(
    family: str,
    held: str,
    tied: Callable[[str, str], Path],
    logits: Forward,
    words: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    place = tied(family, held)
    expected = reload(place)
    assert is_tied(expected) is (held != "both, different")
    for model in both(place):
        assert is_tied(model) is is_tied(expected)
        assert torch.equal(logits(model), logits(expected))
    save(both(place)[0], words, tmp_path / "saved")
    save_blockwise(both(place)[1], words, tmp_path / "blockwise", change=lambda index: None)
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("saved", "blockwise")]
    assert files[0] == files[1]
    for model in (reload(tmp_path / "saved"), *both(tmp_path / "saved")):
        assert torch.equal(logits(model), logits(expected))


@pytest.mark.parametrize(("family", "held"), CASES)
def test_a_compressed_model_keeps_it_and_so_does_the_dense_one_made_of_it(
    family: str,
    held: str,
    tied: Callable[[str, str], Path],
    logits: Forward,
    compress: Callable[..., PreTrainedModel],
    words: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    whole, streamed = both(tied(family, held))
    compress(whole, bias=family == "mistral")
    expected, blocks = logits(whole), architecture_of(whole.config).blocks
    factors = {name: _factors(layer) for name, layer in low_rank_layers(whole).items()}
    unfuse_(streamed)

    def change(index: int) -> None:
        apply_factors(streamed, {name: each for name, each in factors.items() if name.startswith(f"{blocks}.{index}.")})

    save(whole, words, tmp_path / "saved")
    save_blockwise(streamed, words, tmp_path / "blockwise", change=change)
    for place in (tmp_path / "saved", tmp_path / "blockwise"):
        for model in (reload(place, experts_implementation="eager"), *both(place)):
            assert torch.equal(logits(model), expected)
    densify_folder(tmp_path / "saved", tmp_path / "folded")
    densify(both(tmp_path / "saved")[0]).save_pretrained(tmp_path / "dense")
    densify(reload(tmp_path / "saved")).save_pretrained(tmp_path / "dense of transformers")
    for place in (tmp_path / "folded", tmp_path / "dense", tmp_path / "dense of transformers"):
        model, report = reload(place, output_loading_info=True, experts_implementation="eager")
        assert not any(report.values())
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def _factors(layer: nn.Module) -> Factors:
    bias = layer.B.bias
    return Factors(layer.A.weight.data, layer.B.weight.data, None if bias is None else bias.data)


@pytest.mark.parametrize("family", ["llama", "llava", "qwen2_5_vl"])
def test_the_config_of_a_model_with_a_head_of_its_own_says_so(
    family: str, tied: Callable[[str, str], Path], words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Others tie by the config alone, and so does transformers when a model is built anew."""
    model = both(tied(family, "both, different"))[0]
    save(model, words, tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not said["tie_word_embeddings"]
    assert not said.get("text_config", {}).get("tie_word_embeddings", False)
    model.tie_weights()
    assert not is_tied(model)


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_plan_reckons_with_a_head_beside_the_embedding(
    family: str, held: str, tied: Callable[[str, str], Path]
) -> None:
    """Also with one that turns out to be equal: loading compares them in memory."""
    place = tied(family, held)
    loaded, planned = layout_of(unfuse_(both(place)[0])), layout_of(skeleton(place))
    assert planned.rest - loaded.rest == (64 * 32 * 4 if held == "both, equal" else 0)
    (place / WEIGHTS).unlink()
    assert layout_of(skeleton(place)).rest == loaded.rest - (64 * 32 * 4 if held == "both, different" else 0)
