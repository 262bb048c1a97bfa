"""What the flow trains by, and what a recovery by diagonals leaves: another checkpoint, and the same ranks."""

import shutil
from pathlib import Path

import pytest

from flows.parts.recovery import plan_of
from mgaa.errors import UsageError
from tasks.artifacts.files import CURVE, read_table
from tasks.cache.artifact import Store
from tasks.config.parameters import load_parameters
from tasks.steps.collect_recovered import collect_recovered
from tasks.steps.make_examples import make_examples
from tasks.steps.read_texts import READING, source_content
from tasks.steps.recover import recover
from tests.support.finished import finished_run
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow

FILE = ROOT / "params.yaml"


def test_a_plan_is_there_where_something_is_recovered() -> None:
    assert plan_of(load_parameters(FILE)) is None
    for method in ("lora", "diagonals"):
        plan = plan_of(load_parameters(FILE, [f"recovery.method={method}", "recovery.precision=float32"]))
        assert plan is not None
        assert (plan["method"], plan["precision"]) == (method, "float32")


def test_peft_is_asked_for_by_lora_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import util

    find = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    assert plan_of(load_parameters(FILE, ["recovery.method=diagonals"])) is not None
    with pytest.raises(UsageError, match="recovery needs peft, which is not installed"):
        plan_of(load_parameters(FILE, ["recovery.method=lora"]))


def test_diagonals_change_the_checkpoint_and_none_of_its_ranks(tmp_path: Path) -> None:
    run = finished_run()
    store = Store(Path(shutil.copytree(run.store.path, tmp_path / "store")))
    given, model = run.results, run.results.models["mgaa"]
    recovery = ["recovery.method=diagonals", "recovery.rank=64", "recovery.rate=0.03", "recovery.precision=float32"]
    plan = plan_of(
        load_parameters(FILE, [*recovery, "recovery.steps=4", "recovery.batch=8", "recovery.evaluate_every=2"])
    )
    content = source_content(run.parameters.data.calibration.source)
    section = run.parameters.data.calibration.model_dump(by_alias=True)
    examples = make_examples.fn(
        store,
        given.backbone,
        given.texts,
        section={key: section[key] for key in READING},
        form="text",
        length=16,
        samples=None,
        seed=0,
        content=content,
    )
    checkpoint = recover.fn(store, model.checkpoint, examples, given.tokens["calibration"], plan=plan, device="cpu")
    assert checkpoint != model.checkpoint
    assert read_table(store, checkpoint, CURVE)["best"] > 0
    assert collect_recovered.fn(store, given.backbone, model.ranks, checkpoint) == model.ranks
