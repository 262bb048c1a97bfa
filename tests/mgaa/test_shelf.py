"""Truths of streaming: a model whose blocks stay in their files computes the bits of the model in memory, and holds one block at a time."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mgaa.architectures import decoder_blocks
from mgaa.checkpoint import load, save
from mgaa.errors import InputError, NumericalError
from mgaa.fused import unfuse_
from mgaa.perplexity import perplexity
from mgaa.shelf import is_shelved, resident
from mgaa.streaming import stream_statistics
from tests.mgaa.conftest import FAMILIES
from tests.mgaa.test_streaming import same

Tiny = Callable[..., PreTrainedModel]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path, tiny: Tiny, words: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """A checkpoint of a tiny model, by family, in several shards."""

    def write(family: str = "llama", **settings: object) -> Path:
        place = tmp_path / f"model {len(list(tmp_path.iterdir()))}"
        tiny(family, **settings).save_pretrained(place, max_shard_size="30KB")
        words.save_pretrained(place)
        return place

    return write


def on_meta(model: PreTrainedModel) -> list[bool]:
    """For every block, whether all its parameters are on the meta device."""
    return [all(parameter.is_meta for parameter in block.parameters()) for block in decoder_blocks(model)]


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_and_logits_are_those_of_the_model_in_memory(
    folder: Callable[..., Path], family: str, tokens: Tensor
) -> None:
    place = folder(family)
    whole, streamed = (load(place, stream=stream)[0] for stream in (False, True))
    assert (is_shelved(whole), is_shelved(streamed)) == (False, True)
    with torch.no_grad():
        assert torch.equal(whole(tokens).logits, streamed(tokens).logits)
    assert on_meta(streamed) == [True] * 2
    pairs = zip(stream_statistics(unfuse_(whole), tokens), stream_statistics(unfuse_(streamed), tokens), strict=True)
    assert all(same(one, two) and one.shared == two.shared for one, two in pairs)
    assert on_meta(streamed) == [True] * 2
    for index, block in enumerate(decoder_blocks(streamed)):
        with resident(block):
            there = decoder_blocks(whole)[index].state_dict()
            assert block.state_dict().keys() == there.keys()
            assert all(torch.equal(tensor, there[name]) for name, tensor in block.state_dict().items())
