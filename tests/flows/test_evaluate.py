"""Any model is measured by one protocol, and gives the numbers of the run that made it."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.evaluate import evaluate
from mgaa.errors import NumericalError
from tasks.artifacts.backbone import backbone_model
from tasks.cache.artifact import Store
from tasks.steps.load_backbone import architecture_digest, identify, load_backbone
from tests.support.laboratory import Outcome, TinyProject, change, write_other_model

pytestmark = pytest.mark.slow

Lab = tuple[TinyProject, Outcome]
EVALUATED = {"measure_perplexity": 2, "score_tasks": 1}
"""The tables are those of the run, so the step that joins them is not executed again."""


def evaluation(lab: TinyProject) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((lab.root / "results" / "evaluation.json").read_text())
    return found


@pytest.mark.parametrize("name", ["mgaa", "dense"])
def test_a_model_of_a_run_gives_the_numbers_of_that_run(name: str, done: TinyProject, first: Lab) -> None:
    lab, _ = first
    source = lab.root / "models" / "compressed" if name == "mgaa" else lab.model
    outcome = done.run(f"backbone.source={source}", flow=evaluate)
    assert outcome == Outcome(0, "", {"load_model": 1, "tokenize": 2, **EVALUATED})
    told, found = json.loads((lab.root / "results" / "metrics.json").read_text()), evaluation(done)
    of_the_run = {"linear_parameters", "compression", "model_compression", "seconds", "checkpoint"}
    assert {key: found[key] for key in told["models"][name].keys() - of_the_run} == {
        key: value for key, value in told["models"][name].items() if key not in of_the_run
    }
    assert (found["source"], found["card"]) == (str(source), told["card"])


def test_an_architecture_that_cannot_be_compressed_is_evaluated(done: TinyProject, tmp_path: Path) -> None:
    write_other_model(tmp_path / "bloom", done.model)
    outcome = done.run(f"backbone.source={tmp_path / 'bloom'}", "evaluation.tasks=[]", flow=evaluate)
    assert (outcome.code, outcome.message) == (0, "")
    found = evaluation(done)
    assert (found["tasks"], found["card"]["context_length"]) == ({}, 32)
    assert 1 < found["perplexity"] < 1000


def test_a_model_that_is_not_finite_is_an_error_and_leaves_the_last_result(done: TinyProject, tmp_path: Path) -> None:
    broken = done.copy_model(tmp_path / "broken")
    change(broken, "model.norm.weight", lambda weight: weight.fill_(float("nan")))
    outcome = done.run(f"backbone.source={broken}", flow=evaluate)
    assert (outcome.code, outcome.executed) == (4, {})
    assert outcome.message.startswith(f"error: model.norm.weight in {broken} has 48 non-finite entries")
    assert not (done.root / "results" / "evaluation.json").exists()


def test_a_model_that_changes_in_its_place_is_loaded_again(done: TinyProject, tmp_path: Path) -> None:
    model, store = done.copy_model(tmp_path / "model"), Store(done.root / "store")

    def load() -> float:
        files = identify(str(model), None)
        given: dict[str, Any] = {"source": str(model), "revision": None, "dtype": "float32", "parts": ["decoder"]}
        given["architecture"] = architecture_digest(str(model), None)
        backbone = load_backbone.fn(store, files=files, **given)
        return float(backbone_model(store, backbone, "cpu")[0].model.norm.weight[0])

    assert load() == 1.0
    change(model, "model.norm.weight", lambda weight: weight.fill_(2.0))
    assert load() == 2.0
    change(model, "model.norm.weight", lambda weight: weight.fill_(float("nan")))
    with pytest.raises(NumericalError, match=r"model\.norm\.weight"):
        load()
