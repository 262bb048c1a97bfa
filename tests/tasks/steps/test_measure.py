"""A model that is measured in memory gives the numbers of the checkpoint that is written and read back, to the bit."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from mgaa.models.lowrank import low_rank_layers
from tasks.artifacts.backbone import backbone_model
from tasks.artifacts.files import MEASUREMENT, METRICS, read_table
from tasks.artifacts.specs import WindowSpec
from tasks.cache.artifact import Artifact, Store
from tasks.steps.measure import measure
from tests.support.finished import Finished, finished_run

WINDOWS = WindowSpec(16, None, 8)


@pytest.fixture(scope="module")
def run() -> Finished:
    return finished_run()


@pytest.fixture(scope="module")
def store(run: Finished, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A copy of the store of the run."""
    return Store(Path(shutil.copytree(run.store.path, tmp_path_factory.mktemp("measure") / "store")))


def measured(run: Finished, store: Store, ranks: Artifact | None) -> Artifact:
    spectra = [] if ranks is None else run.results.spectra
    return measure.fn(
        store, run.results.backbone, run.results.tokens["evaluation"], spectra, ranks, windows=WINDOWS, device="cpu"
    )


@pytest.mark.parametrize("name", ["dense", "uniform", "mgaa"])
def test_the_numbers_are_those_of_the_checkpoint_to_the_bit(name: str, run: Finished, store: Store) -> None:
    model = None if name == "dense" else run.results.models[name]
    evaluated = read_table(store, model.metrics if model else run.results.dense.metrics, METRICS)
    found = read_table(store, measured(run, store, model.ranks if model else None), MEASUREMENT)
    for key in ("nll", "perplexity", "nll_stderr", "parameters"):
        assert found[key] == evaluated[key], key
    assert found["card"].items() <= evaluated["card"].items()


def test_the_losses_of_the_windows_add_up(run: Finished, store: Store) -> None:
    found = read_table(store, measured(run, store, run.results.models["mgaa"].ranks), MEASUREMENT)
    assert len(found["losses"]) == len(found["counts"]) == found["card"]["windows"] > 1
    assert math.fsum(found["losses"]) / sum(found["counts"]) == found["nll"]
    assert sum(found["counts"]) == found["card"]["tokens"]


def test_a_measurement_writes_no_model_and_leaves_the_backbone_as_it_is(run: Finished, store: Store) -> None:
    shutil.rmtree(store.path / "measurement", ignore_errors=True)
    model, _ = backbone_model(store, run.results.backbone, "cpu")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    kinds = {path.name for path in store.path.iterdir()}
    artifact = measured(run, store, run.results.models["mgaa"].ranks)
    assert {path.name for path in store.path.iterdir()} - kinds <= {"measurement", "locks"}
    assert sum(path.stat().st_size for path in store.path_of(artifact).iterdir()) < 20_000
    assert low_rank_layers(model) == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_manifest_tells_how_long_the_evaluation_alone_took(run: Finished, store: Store) -> None:
    artifact = measured(run, store, run.results.models["uniform"].ranks)
    manifest = json.loads((store.path_of(artifact) / "manifest.json").read_text())
    assert 0 < manifest["facts"]["evaluation_seconds"] < manifest["seconds"]
