"""What transformers loads is loaded, in memory and streamed, with the same tensors, whatever the files call them and hold beside them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mgaa.blocks.offload import resident
from mgaa.checkpoints.load import load, open_checkpoint
from mgaa.errors import InputError
from mgaa.models.architectures import decoder_blocks, path_of_blocks
from tests.mgaa.conftest import FAMILIES, reload
from tests.support.layouts import LAYOUTS, ROTARY, Layout, lay_out

Tiny = Callable[..., PreTrainedModel]
CASES = [(family, name) for family in FAMILIES for name in ("as saved", *LAYOUTS.get(family.partition(",")[0], {}))]


@pytest.fixture
def folder(tmp_path: Path, tiny: Tiny, words: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """A checkpoint of a tiny model in a layout."""

    def write(family: str, layout: Layout | None = None, **settings: object) -> Path:
        tiny(family, **settings).save_pretrained(tmp_path)
        words.save_pretrained(tmp_path)
        if layout is not None:
            lay_out(tmp_path, layout)
        return tmp_path

    return write


def tensors_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every tensor of a model, also of its blocks in files, and those that no file holds."""
    found = {**model.state_dict(), **dict(model.named_buffers())}
    for index, block in enumerate(decoder_blocks(model)):
        with resident(block):
            found |= {f"{path_of_blocks(model)}.{index}.{name}": each for name, each in block.state_dict().items()}
    return found


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_the_tensors_are_those_of_from_pretrained(folder: Callable[..., Path], family: str, layout: str) -> None:
    place = folder(family, LAYOUTS.get(family.partition(",")[0], {}).get(layout))
    model, report = reload(place, output_loading_info=True)
    assert not report["missing_keys"]
    expected = tensors_of(model)
    for stream in (False, True):
        found = tensors_of(load(place, device="cpu", stream=stream)[0])
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_ignored_is_named(folder: Callable[..., Path], stream: bool) -> None:
    place = folder("llama")
    assert open_checkpoint(place, stream=stream).ignored == []
    lay_out(place, ROTARY)
    lay_out(place, lambda tensors: tensors | {"norm.weight": tensors["model.norm.weight"] * 2})  # under two names
    assert open_checkpoint(place, stream=stream).ignored == [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.1.self_attn.rotary_emb.inv_freq",
        "norm.weight",
    ]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "self_attn.q_norm.weight", "mlp.shared.weight"])
def test_what_is_no_leftover_is_refused(folder: Callable[..., Path], stream: bool, name: str) -> None:
    """transformers warns and drops it: a model without its biases is another one."""
    place = folder("llama", lambda tensors: tensors | {f"model.layers.1.{name}": torch.ones(32)})
    with pytest.raises(InputError, match=rf"unexpected model\.layers\.1\.{name}\. .*its config belongs to another"):
        load(place, stream=stream)
