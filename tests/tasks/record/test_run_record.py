"""What makes two runs the same run: what their results depend on, and nothing else."""

import shutil
from pathlib import Path

import pytest

from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import content_digest, digest
from tasks.config.parameters import load
from tasks.record.run_record import last_run, read_record, run_identity
from tests.support.finished import finished_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the finished run, to change what it read."""
    return Path(
        shutil.copytree(finished_run().parameters.folder, tmp_path / "run", ignore=shutil.ignore_patterns("store"))
    )


def identity(folder: Path, *overrides: str) -> str:
    """The digest of the identity of a run on the files of a folder."""
    sections = ("calibration", "validation", "evaluation")
    texts = [f"data.{section}.source={folder / section}.jsonl" for section in sections]
    p = load(folder / "params.yaml", [f"backbone.source={folder / 'model'}", *texts, *overrides])
    return digest(run_identity(p, "compress"))


@pytest.mark.parametrize(
    "override", ["ratios.compression=0.3", "factors.method=svd", "data.evaluation.samples=7", "evaluation.tasks=[]"]
)
def test_a_parameter_that_changes_results_makes_another_run(folder: Path, override: str) -> None:
    assert identity(folder, override) != identity(folder)


@pytest.mark.parametrize(
    "override", ["store.lock_timeout=1", "tracking.experiment=other", "runner.workers=7", "output.results=elsewhere"]
)
def test_a_parameter_that_only_says_where_does_not(folder: Path, override: str) -> None:
    assert identity(folder, override) == identity(folder)


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", "model/tokenizer.json", "calibration.jsonl", "evaluation.jsonl"]
)
def test_one_byte_of_a_file_that_is_read_makes_another_run(folder: Path, name: str) -> None:
    before = identity(folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert identity(folder) != before


def test_a_run_is_found_by_its_identity_and_only_where_it_was_kept(tmp_path: Path) -> None:
    run = finished_run()
    assert last_run(run.store, run.parameters, "compress") == run.record
    assert last_run(run.store, run.parameters, "sweep") is None
    assert last_run(Store(tmp_path / "empty"), run.parameters, "compress") is None


def test_a_record_names_every_artifact_with_the_key_it_was_made_under(tmp_path: Path) -> None:
    run = finished_run()
    record = read_record(run.store, run.record)
    made = [
        each
        for those in run.results.artifacts().values()
        for each in ([those] if isinstance(those, Artifact) else those)
    ]
    named = {each for those in record["artifacts"].values() for each in those}
    assert {f"{each.kind}/{each.digest}" for each in made} <= named
    for name, key in record["keys"].items():
        assert run.store.recall(key) == Artifact(*name.split("/"))
    assert record["published"].keys() >= {
        "results/metrics.json",
        "models/compressed/config.json",
        "models/compressed/manifest.json",
    }


def test_the_digest_of_a_run_follows_from_its_published_bytes() -> None:
    import hashlib

    run = finished_run()
    content = (run.parameters.results / "record.json").read_bytes()
    assert run.record.digest == content_digest("run", {"record.json": hashlib.sha256(content).hexdigest()})
