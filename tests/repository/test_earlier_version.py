"""A store and a checkpoint that the version before wrote are read as it read them (tests/support/stores; its code lay in flat files)."""

import tarfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import mgaa
from tasks.artifacts.files import backbone_matrices, backbone_record
from tasks.audit.verify_store import verify_store
from tasks.cache.artifact import Artifact, Store
from tasks.record.lineage import ancestry
from tasks.results.publish import evaluation_seconds
from tasks.results.rebuild_report import restore_subject
from tasks.results.report import render_page

ROOT = Path(__file__).resolve().parents[2]
RUN = Artifact("run", "07a99f138fe7909ca4c23cf9b55a82ca7d66b1576c8456d89308d87fb39317c8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`store` and `models/compressed` of a small run of version 0.1, before modules moved into folders."""
    path = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ROOT / "tests" / "support" / "stores" / "version-0.1.tar.xz") as archive:
        archive.extractall(path, filter="data")
    return path


def test_every_artifact_is_sound_and_led_back_to_its_sources(folder: Path) -> None:
    store = Store(folder / "store")
    checked = verify_store(store)
    assert (checked.findings, checked.artifacts) == ([], len([*store.path.glob("*/" + "?" * 64)]))
    assert checked.artifacts > 20
    nodes = ancestry(store, [RUN])
    assert {"run", "checkpoint", "factors", "ranks", "ratios", "statistics", "texts", "backbone"} <= {
        each.kind for each in nodes
    }


def test_its_backbone_is_read_without_what_was_added_since(folder: Path) -> None:
    store = Store(folder / "store")
    (path,) = (store.path / "backbone").iterdir()
    backbone = Artifact("backbone", path.name)
    assert "architecture" not in backbone_record(store, backbone)
    assert {matrix.sublayer.partition(".")[2] for matrix in backbone_matrices(store, backbone)} == {"attention", "ffn"}


def test_its_evaluations_are_read_with_the_seconds_that_they_took(folder: Path) -> None:
    store = Store(folder / "store")
    metrics = [Artifact("metrics", path.name) for path in (store.path / "metrics").iterdir()]
    assert len(metrics) > 1
    assert [evaluation_seconds(store, each) for each in metrics] == [
        store.manifest(each)["seconds"] for each in metrics
    ]


def test_its_report_is_written_again(folder: Path) -> None:
    subject = restore_subject(Store(folder / "store"), RUN, blind="")
    assert subject.metrics["models"].keys() > {"dense", "mgaa"}
    page = render_page(subject)
    assert all(f"{model['perplexity']:,.2f}" in page for model in subject.metrics["models"].values())


def test_its_checkpoint_loads_with_transformers_and_with_mgaa(folder: Path) -> None:
    model, tokenizer = mgaa.load(folder / "models" / "compressed")
    same = AutoModelForCausalLM.from_pretrained(folder / "models" / "compressed", dtype="auto")
    ids = torch.tensor([tokenizer.encode("a compressed model")])
    with torch.no_grad():
        logits = model(ids).logits
        assert torch.equal(logits, same(ids).logits)
    assert sum(isinstance(layer, mgaa.LowRankLinear) for layer in model.modules()) > 5
    assert bool(logits.isfinite().all())
