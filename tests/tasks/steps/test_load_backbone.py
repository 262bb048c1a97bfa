"""The record of a backbone counts the tensors of its files that the model does not have; where there are none it does not speak of them."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tasks.artifacts.files import backbone_record
from tasks.cache.artifact import Store
from tasks.steps.load_backbone import architecture_digest, identify, load_backbone, load_model
from tests.support.laboratory import documents, write_model
from tests.support.layouts import ROTARY, WEIGHTS, Tensors, lay_out

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", documents(seed=1, number=10))
    return tmp_path / "model"


def records(store: Store, source: Path) -> list[dict[str, Any]]:
    """As it is compressed, and as it is only evaluated."""
    given: dict[str, Any] = {"source": str(source), "revision": None, "dtype": "auto"}
    given |= {"files": identify(str(source), None), "architecture": architecture_digest(str(source), None)}
    return [
        backbone_record(store, each)
        for each in (load_backbone.fn(store, parts=["decoder"], **given), load_model.fn(store, **given))
    ]


def test_what_is_ignored_is_counted_and_named(model: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    before = records(store, model)
    assert not any("ignored_tensors" in record for record in before)
    lay_out(model, ROTARY)
    after = records(store, model)
    names = [f"model.layers.{index}.self_attn.rotary_emb.inv_freq" for index in range(3)]
    for one, other in zip(before, after, strict=True):
        assert other["ignored_tensors"] == {"count": 3, "names": names}
        same = {key for key in other if key not in ("files", "ignored_tensors")}
        assert {key: other[key] for key in same} == {key: one[key] for key in same}


def test_a_head_of_its_own_counts_as_parameters(model: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    tied = records(store, model)

    def untied(tensors: Tensors) -> Tensors:
        return tensors | {HEAD: tensors[EMBEDDING].flip(0).contiguous()}

    lay_out(model, untied)
    count = load_file(model / WEIGHTS)[HEAD].numel()
    for one, other in zip(tied, records(store, model), strict=True):
        assert other["parameters"] == one["parameters"] + count
