"""A backbone that is a GGUF file: dequantized once into the store, read from there, and recorded with its quantization."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.artifacts.backbone import backbone_block, backbone_model, backbone_processor, forget_models
from tasks.artifacts.files import backbone_record
from tasks.artifacts.models import load_artifact, weight_bytes
from tasks.cache.artifact import Artifact, Store
from tasks.results.model_card import backbone_name, quantization_of
from tasks.steps.dequantize import dequantize
from tasks.steps.load_backbone import architecture_digest, identify, load_backbone, load_model
from tests.support.gguf_files import tiny_llama, write_gguf
from tests.support.laboratory import documents, write_model


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny_llama(), matrices="Q4_0")


def loaded(store: Store, source: Path, **more: Any) -> tuple[Artifact, Artifact, Artifact]:
    """The dequantized weights, and the model as it is compressed and as it is only evaluated."""
    files = identify(str(source), None)
    weights = dequantize.fn(store, source=str(source), files=files, dtype="auto")
    given: dict[str, Any] = {"source": str(source), "revision": None, "dtype": "auto", "files": files}
    given["architecture"] = architecture_digest(str(store.folder(weights)), None)
    return weights, load_backbone.fn(store, weights, parts=["decoder"], **given), load_model.fn(store, weights, **given)


def test_the_record_says_from_which_quantization(file: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    weights, *models = loaded(store, file)
    ((name, sha256),) = identify(str(file), None).items()
    for model in models:
        record = backbone_record(store, model)
        assert record["weights"] == {"kind": "dequantized", "digest": weights.digest}
        assert record["files"] == {name: sha256}
        assert record["dequantized"] == {"file": name, "sha256": sha256, "tensors": {"Q4_0": 14, "F32": 5, "Q8_0": 1}}
        assert store.manifest(model)["inputs"] == {"weights": record["weights"]}
        assert (backbone_name(record), record["dtype"]) == (name, "bfloat16")
        assert quantization_of(record) == f"14 Q4_0, 5 F32 and 1 Q8_0 tensors of tiny.gguf (sha256 {sha256})"


def test_a_model_and_its_blocks_are_read_from_the_store(file: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    weights, backbone, model = loaded(store, file)
    whole = load_artifact(store, model, "cpu")[0]
    assert backbone_processor(store, backbone)[1].bos_token_id == 0
    assert weight_bytes(store, backbone) == (store.folder(weights) / "model.safetensors").stat().st_size
    forget_models()
    with backbone_block(store, backbone, 1, "cpu") as streamed:
        name = "model.layers.1.mlp.down_proj.weight"
        assert torch.equal(streamed.get_parameter(name), whole.get_parameter(name))
    assert backbone_model(store, backbone, "cpu")[0].config.model_type == "llama"
    forget_models()


def test_a_folder_that_was_converted_before_says_so_too_and_others_say_nothing(file: Path, tmp_path: Path) -> None:
    import mgaa

    store = Store(tmp_path / "store")
    mgaa.convert_gguf(file, tmp_path / "converted")
    write_model(tmp_path / "plain", documents(seed=1, number=10))
    records = []
    for folder in ("converted", "plain"):
        source = str(tmp_path / folder)
        given: dict[str, Any] = {"files": identify(source, None), "architecture": architecture_digest(source, None)}
        made = load_model.fn(store, source=source, revision=None, dtype="auto", **given)
        records.append(backbone_record(store, made))
    assert records[0]["dequantized"]["file"] == "tiny.gguf"
    assert not {"weights", "dequantized"} & records[1].keys()
    assert quantization_of(records[1]) == ""


def test_the_same_file_is_dequantized_once(file: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = loaded(store, file)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")}
    assert loaded(store, file) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*.safetensors")} == before
