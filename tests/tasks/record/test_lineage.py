"""From a checkpoint one walks back to everything it was made from, with nothing but the store."""

import shutil
from pathlib import Path

import pytest

from tasks.cache.artifact import Store
from tasks.cache.source import code_digest
from tasks.record.lineage import describe_lineage, full_name, run_facts
from tests.support.finished import Finished, finished_run


@pytest.fixture
def run() -> Finished:
    return finished_run()


def test_a_checkpoint_leads_to_every_stage_behind_it(run: Finished) -> None:
    found = describe_lineage(run.store, [run.results.models["mgaa"].checkpoint])
    kinds = {each.partition("/")[0] for each in found}
    assert kinds == {"backbone", "texts", "tokens", "statistics", "spectra", "ratios", "ranks", "factors", "checkpoint"}
    assert full_name(run.results.tokens["calibration"]) in found
    assert full_name(run.results.tokens["evaluation"]) not in found


def test_inputs_stand_before_what_is_made_from_them(run: Finished) -> None:
    found = describe_lineage(run.store, [model.metrics for model in run.results.models.values()])
    place = {each: index for index, each in enumerate(found)}
    for each, told in found.items():
        for given in told["inputs"].values():
            assert all(place[behind] < place[each] for behind in given)


def test_every_stage_tells_its_task_parameters_code_and_commit(run: Finished) -> None:
    found = describe_lineage(run.store, [run.results.models["mgaa"].checkpoint])
    ratios = found[full_name(run.results.models["mgaa"].ratios)]
    assert ratios["task"] == "allocate_ratios"
    assert ratios["parameters"]["target"]["compression"] == 0.3
    assert all({"code", "git", "versions", "device"} <= told.keys() for told in found.values())


def test_a_copy_of_the_store_tells_the_same(run: Finished, tmp_path: Path) -> None:
    shutil.copytree(run.store.path, tmp_path / "copy")
    checkpoint = run.results.models["mgaa"].checkpoint
    assert describe_lineage(Store(tmp_path / "copy"), [checkpoint]) == describe_lineage(run.store, [checkpoint])


def test_a_run_knows_its_code_and_the_dvc_experiment_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_STAGE", "compress")
    monkeypatch.setenv("DVC_EXP_NAME", "silly-name")
    facts = run_facts()
    assert facts["code"] == code_digest()
    assert (facts["dvc.stage"], facts["dvc.experiment"]) == ("compress", "silly-name")
    assert "dvc.baseline" not in facts
