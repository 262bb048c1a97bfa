"""The shapes of a model are known from its config: the same matrices that the loaded model has, of every family."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mgaa
from mgaa.checkpoints.meta_model import skeleton
from mgaa.errors import InputError, UsageError
from mgaa.models.architectures import matrices_of
from mgaa.models.fused import unfuse_
from tests.mgaa.conftest import SINGLE

Tiny = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("family", SINGLE)
def test_the_matrices_are_those_of_the_model(
    tiny: Tiny, words: PreTrainedTokenizerFast, tmp_path: Path, family: str
) -> None:
    mgaa.save(tiny(family).to(torch.bfloat16), words, tmp_path)
    found = skeleton(tmp_path)
    assert (matrices_of(found), found.dtype) == (matrices_of(unfuse_(tiny(family))), torch.bfloat16)
    assert all(tensor.is_meta for tensor in found.parameters())
    assert skeleton(tmp_path, dtype="float16").dtype == torch.float16


def test_a_compressed_model_and_one_of_unknown_dtype_are_refused(
    tiny: Tiny, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    model = tiny()
    mgaa.save(model, words, tmp_path / "dense")
    config = tmp_path / "dense" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({key: value for key, value in content.items() if key not in ("dtype", "torch_dtype")}))
    assert skeleton(tmp_path / "dense").dtype == torch.float32  # as the files say
    weights = tmp_path / "dense" / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"backbone\.dtype is auto, .*set backbone\.dtype"):
        skeleton(tmp_path / "dense")
    (tmp_path / "elsewhere").rename(weights)
    config.write_text(json.dumps(content | {"hidden_size": "wide"}))
    with pytest.raises(InputError, match="cannot build a model"):
        skeleton(tmp_path / "dense")
    tokens = torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(0))
    mgaa.compress_(model, tokens, groups=4)
    mgaa.save(model, words, tmp_path / "low")
    with pytest.raises(InputError, match="is compressed already: give the dense backbone"):
        skeleton(tmp_path / "low")
