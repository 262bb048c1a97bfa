"""Truths of `statistics.gradients`: one step behind the same calibration, which goes on where it stopped, and faults found before."""

from pathlib import Path

import pytest
import torch

from mgaa.blocks.blockwise import Blockwise
from mgaa.errors import ResourceError
from mgaa.statistics.statistics import BlockStatistics
from tests.mgaa.statistics.test_calibration import same
from tests.support.laboratory import BLOCKS, Outcome, TinyProject

pytestmark = pytest.mark.slow

GRADIENTS = "statistics.gradients=true"
FEW = ["evaluation.tasks=[]", "evaluation.baselines=[]", "evaluation.samples.number=0"]


def blocks(folder: Path) -> list[BlockStatistics]:
    return [BlockStatistics.load(path) for path in sorted(folder.glob("block-*.safetensors"))]


def test_the_step_joins_gradients_to_the_statistics_and_goes_on_where_it_was_stopped(
    done: TinyProject, first: tuple[TinyProject, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    (measured,) = done.artifacts("statistics")
    passed, came_back, through, back = list[int](), list[int](), Blockwise.advance, Blockwise.backward

    def failing(self: Blockwise, index: int, *given: object) -> None:
        came_back.append(index)
        if came_back == [2, 1]:
            raise ResourceError("the disk was pulled out")
        back(self, index, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Blockwise, "backward", failing)
    monkeypatch.setattr(Blockwise, "advance", lambda self, index: (passed.append(index), through(self, index))[1])
    stopped = done.run(GRADIENTS, *FEW)
    assert (stopped.code, stopped.executed) == (5, {})
    outcome = done.run(GRADIENTS, *FEW, "backbone.hidden=disk")  # where states wait is no part of the key
    assert (outcome.code, outcome.message) == (0, "")
    assert (outcome.executed["differentiate"], outcome.executed["decompose"]) == (1, BLOCKS)
    assert "calibrate" not in outcome.executed
    assert (passed, came_back) == ([0, 1, 2], [2, 1, 1, 0])
    (made,) = set(done.artifacts("statistics")) - {measured}
    before, after = blocks(measured), blocks(made)
    assert len(after) == BLOCKS
    for one, two in zip(before, after, strict=True):
        assert same(one, two)
        assert (one.gradients, two.gradients.keys()) == ({}, two.shared.keys())
        assert all(bool(torch.linalg.eigvalsh(moment).max() > 0) for moment in two.gradients.values())
    assert [*(done.root / "store" / "unfinished").iterdir()] == []
    assert done.run(GRADIENTS, *FEW) == Outcome(0, "", {})


REFUSED = {
    "backbone.dtype=float16": "weights in float16, which have no usable gradients",
    "data.calibration.samples=2": "has 64 tokens, expected at least 96, as many as model.layers.0.mlp.gate_proj has",
    "statistics.inputs=compressed": "statistics.gradients is True, but with statistics.inputs=compressed",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_carries_no_gradients_is_refused_before_anything_is_measured(done: TinyProject, override: str) -> None:
    outcome = done.run(GRADIENTS, *FEW, override)
    assert outcome.code == 2
    assert REFUSED[override] in outcome.message
    assert not outcome.executed.keys() & {"calibrate", "differentiate"}
