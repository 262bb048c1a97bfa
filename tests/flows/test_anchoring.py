"""`method=loss` through the real flow: a step per block behind the compressed ones, the checkpoint of one call, stopped and streamed."""

import json
from typing import Any

import pytest
import torch

import mgaa
from tasks.artifacts.files import token_windows
from tasks.cache.artifact import Artifact, Store
from tests.support.laboratory import BLOCKS, Outcome, TinyProject, striking

pytestmark = pytest.mark.slow

Lab = tuple[TinyProject, Outcome]
METHOD = ("method=loss", "ratios.compression=0.3", "evaluation.tasks=[]", "evaluation.samples.number=0")
EXECUTED = {
    "load_backbone": 1,
    "read_texts": 1,
    "tokenize": 3,
    "calibrate": 1,
    "differentiate": 1,
    "decompose": BLOCKS,
    "allocate_ratios": 1,
    "allocate_ranks": 2,
    "anchor_block": 2 * BLOCKS,
    "assemble": 2,
    "measure_perplexity": 6,
    "evaluate": 3,
    "draw_figures": 1,
}
"""Executions of a first run with one baseline, which has the same (uniform) ratios."""


@pytest.fixture(scope="module")
def least(empty: TinyProject, tmp_path_factory: pytest.TempPathFactory, prefect_server: str) -> Lab:
    """A laboratory after a run of the method; look, and copy it."""
    lab = empty.copy(tmp_path_factory.mktemp("loss") / "lab", store=False)
    return lab, lab.run(*METHOD)


def factors(lab: TinyProject) -> set[str]:
    return {digest for task, digest in lab.records().values() if task == "anchor_block"}


def test_the_blocks_are_anchored_one_after_the_other_and_a_second_run_executes_nothing(least: Lab) -> None:
    lab, outcome = least
    assert (outcome.code, outcome.message, outcome.executed) == (0, "", EXECUTED)
    assert lab.run(*METHOD) == Outcome(0, "", {})
    found: dict[str, Any] = json.loads((lab.root / "results" / "metrics.json").read_text())["models"]
    assert list(found) == ["dense", "uniform", "loss"]
    assert found["loss"]["compression"] >= 0.3


def test_the_checkpoint_is_what_one_call_from_python_gives(least: Lab) -> None:
    lab, _ = least
    (record,) = [
        json.loads(path.read_bytes())
        for path in lab.root.glob("store/keys/*.json")
        if json.loads(path.read_bytes())["stage"]["parameters"].get("section") == "calibration"
    ]
    windows = token_windows(Store(lab.root / "store"), Artifact(record["kind"], record["digest"]))
    model, _ = mgaa.load(lab.model)
    mgaa.compress_(model, windows, compression=0.3, groups=4, **mgaa.LOSS)
    saved, _ = mgaa.load(lab.root / "models" / "compressed")
    with torch.no_grad():
        torch.testing.assert_close(saved(windows).logits, model(windows).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.nightly
def test_a_killed_run_goes_on_at_the_block_where_it_was_and_a_streamed_one_gives_the_same(
    least: Lab, empty: TinyProject, tmp_path_factory: pytest.TempPathFactory, prefect_server: str
) -> None:
    lab = empty.copy(tmp_path_factory.mktemp("killed") / "lab", store=False)
    killed = lab.finish(
        *METHOD, "evaluation.baselines=[]", before=striking("SIGKILL", "factors", 2), PREFECT_API_URL=prefect_server
    )
    assert killed.code == -9
    assert killed.executed["anchor_block"] == 1
    outcome = lab.run(*METHOD, "evaluation.baselines=[]", "backbone.stream=always", "backbone.hidden=disk")
    assert (outcome.code, outcome.executed["anchor_block"]) == (0, BLOCKS - 1)
    assert factors(lab) <= factors(least[0])
    assert len(factors(lab)) == BLOCKS


REFUSED = {
    "statistics.gradients=false": "factors.method is 'kronecker', but with statistics.gradients=false the output gradients",
    "statistics.inputs=compressed": "statistics.gradients is True, but with statistics.inputs=compressed",
    "channels.method=weighted": "channels.method is 'weighted', but with anchor.method=stream",
    "anchor.damping=0": "anchor.damping",
    "search.method=random": "anchor.method is 'stream', but with search.method=random all trials are slices",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_anchored_is_refused_before_anything_is_measured(least: Lab, override: str) -> None:
    outcome = least[0].run(*METHOD, override)
    assert outcome.code == 2
    assert REFUSED[override] in outcome.message
    assert outcome.executed == {}


def test_blocks_are_tuned_behind_the_same_decompositions_and_only_if_they_are_anchored(least: Lab) -> None:
    lab, _ = least
    settings = ("refinement.method=adam", "refinement.steps=20", "evaluation.baselines=[]")
    outcome = lab.run(*METHOD, *settings)
    assert (outcome.code, outcome.executed["anchor_block"]) == (0, BLOCKS)
    assert "differentiate" not in outcome.executed
    alone = lab.run("refinement.method=adam", "evaluation.tasks=[]")
    assert alone.code == 2
    assert "refinement.method is 'adam', but with anchor.method=none" in alone.message
