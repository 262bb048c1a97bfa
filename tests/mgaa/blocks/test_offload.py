"""Truths of streaming: a model whose blocks stay in their files computes the bits of the model in memory, and holds one block at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mgaa.blocks.offload import Shelf, is_shelved, resident
from mgaa.checkpoints import shards
from mgaa.checkpoints.densify import densify, densify_folder
from mgaa.checkpoints.folder import weight_files
from mgaa.checkpoints.save import apply_factors, load, save, save_blockwise, twin_of
from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.evaluation.perplexity import perplexity
from mgaa.models.architectures import architecture_of, decoder_blocks
from mgaa.models.fused import unfuse_
from mgaa.models.lowrank import Factors, low_rank_layers
from mgaa.statistics.calibration import stream_statistics
from tests.mgaa.conftest import FAMILIES
from tests.mgaa.statistics.test_calibration import same

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


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_block_by_block_is_what_save_writes(
    folder: Callable[..., Path], family: str, tmp_path: Path, compress: Callable[..., PreTrainedModel]
) -> None:
    """As one file byte for byte, as shards tensor for tensor; and the same folded back to dense."""
    place = folder(family)
    model, tokenizer = load(place)
    factors = low_rank_layers(compress(model))
    blocks = architecture_of(model.config).blocks
    save(model, tokenizer, tmp_path / "whole")
    for name, size in (("one", 10**9), ("shards", 1000)):
        streamed, _ = load(place, stream=True)
        unfuse_(streamed)

        def change(index: int, streamed: PreTrainedModel = streamed) -> None:
            inside = {
                name: Factors(
                    layer.A.weight.data, layer.B.weight.data, None if layer.B.bias is None else layer.B.bias.data
                )
                for name, layer in factors.items()
                if name.startswith(f"{blocks}.{index}.")
            }
            apply_factors(streamed, inside)

        save_blockwise(streamed, tokenizer, tmp_path / name, change=change, max_shard_size=size)
        assert on_meta(streamed) == [True] * 2
    whole, one, shards = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "one", "shards")
    )
    assert whole == one
    assert {path.name for path in weight_files(tmp_path / "shards")} == {
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    }
    assert {name: shards[name] for name in ("config.json", "tokenizer.json")} == {
        name: whole[name] for name in ("config.json", "tokenizer.json")
    }
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        logits = [load(tmp_path / name)[0](ids).logits for name in ("whole", "shards")]
    assert torch.equal(*logits)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for path in weight_files(tmp_path / "shards") for tensor in load_file(path).values()
    )
    try:
        densify(load(tmp_path / "shards")[0]).save_pretrained(tmp_path / "dense")
    except UsageError:  # no class has room for the biases
        with pytest.raises(UsageError):
            densify_folder(tmp_path / "shards", tmp_path / "folded")
        return
    densify_folder(tmp_path / "shards", tmp_path / "folded")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "dense" / file).read_bytes() == (tmp_path / "folded" / file).read_bytes()


@pytest.mark.parametrize(("length", "stride"), [(8, None), (8, 3), (16, None)])
def test_perplexity_goes_block_by_block_to_the_same_bits(
    folder: Callable[..., Path], tmp_path: Path, length: int, stride: int | None
) -> None:
    place, stream = folder("gemma2"), torch.randint(0, 60, (70,), generator=torch.Generator().manual_seed(0))
    whole, streamed = (load(place, stream=stream_)[0] for stream_ in (False, True))
    expected = perplexity(whole, stream, length=length, stride=stride, batch_size=3)
    assert perplexity(streamed, stream, length=length, stride=stride, batch_size=3) == expected
    kept: dict[str, object] = {"place": "disk", "folder": tmp_path / "waiting"}
    assert perplexity(streamed, stream, length=length, stride=stride, batch_size=3, **kept) == expected  # type: ignore[arg-type]
    assert perplexity(streamed, stream, length=length, stride=stride, batch_size=3, **kept) == expected  # type: ignore[arg-type]
    assert on_meta(streamed) == [True] * 2


def test_blocks_that_are_written_already_are_not_read_again(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder("llama", num_hidden_layers=3)
    model, tokenizer = load(place, stream=True)
    stopping = _stopping(shards._tensors, {2: KeyboardInterrupt()})
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr("mgaa.checkpoints.shards._tensors", stopping)
        save_blockwise(model, tokenizer, tmp_path / "out", change=lambda index: None, key="first")
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.glob(".out.mgaa-first/block-*")} >= {"block-0000.safetensors"}
    asked: list[int] = []
    fetch = Shelf.fetch
    monkeypatch.setattr(Shelf, "fetch", lambda self, index: (asked.append(index), fetch(self, index))[1])
    save_blockwise(model, tokenizer, tmp_path / "out", change=lambda index: None, key="first")
    assert asked == [2]
    assert not [*tmp_path.glob(".*")]
    save(load(place)[0], tokenizer, tmp_path / "whole")
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "whole")]
    assert files[0] == files[1]


def _stopping(function: Callable[..., Any], stops: dict[int, BaseException]) -> Callable[..., Any]:
    def call(model: PreTrainedModel, index: int, *rest: Any) -> Any:
        if index in stops:
            raise stops[index]
        return function(model, index, *rest)

    return call


def test_a_twin_fetches_from_the_same_files_and_has_blocks_of_its_own(folder: Callable[..., Path]) -> None:
    model, _ = load(folder(), stream=True)
    twin = twin_of(model)
    with resident(decoder_blocks(twin)[0]):
        assert (on_meta(model)[0], on_meta(twin)[0]) == (True, False)
        with resident(decoder_blocks(twin)[0]):
            pass
        assert on_meta(twin)[0] is False
    assert on_meta(twin)[0] is True


def test_generation_works_with_blocks_on_demand(folder: Callable[..., Path]) -> None:
    place, ids = folder(), torch.arange(6)[None]
    outputs = [
        load(place, stream=stream)[0].generate(ids, max_new_tokens=5, do_sample=False) for stream in (False, True)
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("damage", ["missing", "truncated", "exchanged"])
def test_a_shard_that_vanishes_or_changes_during_the_run_is_named(
    folder: Callable[..., Path], tiny: Tiny, damage: str
) -> None:
    place = folder()
    model, _ = load(place, stream=True)
    path = next(path for path in weight_files(place) if any(".layers.1." in name for name in load_file(path)))
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        save_file({name: tensor[:3].clone() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"cannot be read|no longer holds"), resident(decoder_blocks(model)[1]):
        pass


def test_a_weight_that_is_not_finite_is_found_when_its_block_is_measured(
    folder: Callable[..., Path], tokens: Tensor
) -> None:
    place = folder()
    path = next(path for path in weight_files(place) if any(".layers.1.mlp" in name for name in load_file(path)))
    tensors = load_file(path)
    name = next(name for name in tensors if ".layers.1.mlp" in name)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, path, {"format": "pt"})
    model, _ = load(place, stream=True)
    with pytest.raises(NumericalError, match=r"model\.layers\.1\..* has 1 non-finite"):
        list(stream_statistics(unfuse_(model), tokens))
