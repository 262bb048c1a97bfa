"""Truths of the plan of a run: it needs a config alone, and a run that cannot fit ends before it starts, saying what would."""

import json
import re
from pathlib import Path

import pytest

from flows.plan import plan
from mgaa.blocks import hardware
from tests.support.laboratory import TinyProject

pytestmark = pytest.mark.slow


def test_a_config_without_weights_is_planned_with(
    empty: TinyProject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((empty.model / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    outcome = empty.run(f"backbone.source={tmp_path}", flow=plan)
    assert (outcome.code, outcome.message, outcome.executed) == (0, "", {})
    shown = capsys.readouterr().out
    assert all(
        stage in shown
        for stage in ("load backbone", "calibrate", "decompose", "factorize", "assemble", "evaluate", "export")
    )
    assert "blocks are in memory" in shown


@pytest.mark.parametrize(
    ("free", "message"),
    [
        ("free_memory", r"GB of memory in '\w+', \d\.\d\d GB are free. No setting makes it fit"),
        ("free_disk", r"GB of disk, 0.00 GB are free. Put the store on a larger disk with store.path=<folder>"),
    ],
)
def test_a_run_that_cannot_fit_ends_before_it_starts(
    fresh: TinyProject, free: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, free, lambda place: 0)
    outcome = fresh.run("backbone.stream=never", "backbone.hidden=device")
    assert outcome.code == 5
    assert outcome.executed == {}
    assert outcome.message.count("\n") == 1
    assert outcome.message.startswith("error: This run needs ")
    assert re.search(message, outcome.message)
