"""Runs of several methods come into one table, with what each model says; what does not belong together is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.command.cli import main
from flows.show import show
from tests.support.processes import ROOT

RUN = dict.fromkeys(("executed", "reused", "wall_seconds", "work_seconds", "peak_memory_bytes"), 1)
PROMPT = {"form": "chat", "prompt": "What is blue?"}


def model(perplexity: float, linear: int) -> dict[str, Any]:
    return {
        "perplexity": perplexity,
        "perplexity_stderr": None,
        "tasks": {},
        "parameters": 2 * linear,
        "bytes": 4 * linear,
        "compression": 1 - linear / 100,
        "model_compression": 1 - linear / 100,
        "seconds": {"compress": 1.0, "evaluate": 2.0},
        "checkpoint": f"models/of-{perplexity:.0f}",
    }


def write_run(folder: Path, dense: float = 10.0, **perplexities: float) -> None:
    models = {"dense": model(dense, 100), **{name: model(value, 80) for name, value in perplexities.items()}}
    said = {name: f"{name}\nsays so" for name in models}
    folder.mkdir()
    (folder / "metrics.json").write_text(
        json.dumps({"models": models, "card": {}, "prompts": [{**PROMPT, "said": said}], "run": RUN})
    )
    allocation = {"budget": 80, "linear_parameters": 80, "slack": 0}
    (folder / "allocation.json").write_text(json.dumps(dict.fromkeys(perplexities, allocation)))


def together(folder: Path, *beside: str) -> int:
    """Show the run in `folder` with those beside it."""
    parameters = folder / "params.yaml"
    parameters.write_text((ROOT / "params.yaml").read_text())
    return main(show, [f"--params={parameters}", "output.results=one", f"output.beside=[{', '.join(beside)}]"])


def test_the_method_of_each_run_has_a_row_its_share_and_its_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "one", uniform=40.0, mgaa=20.0)
    write_run(tmp_path / "two", uniform=80.0, loss=14.0)
    assert together(tmp_path, "two") == 0
    told = capsys.readouterr().out
    rows = [line.split()[0] for line in told.splitlines() if "%" in line and line.startswith(" ") and "." in line]
    assert rows == ["dense", "uniform", "MGAA", "loss"]
    assert "80.00" not in told  # the uniform of the other run
    assert "MGAA +0.6931, uniform +1.3863: 50 % of uniform's loss." in told
    assert "loss +0.3365, uniform +1.3863: 24 % of uniform's loss." in told
    assert all(f"The run of {name}: 1 steps executed" in told for name in ("MGAA", "loss"))
    assert (
        "Asked: What is blue?\n  dense    dense says so\n  uniform  uniform says so\n  MGAA     mgaa says so\n" in told
    )
    assert "  loss     loss says so\n" in told
    assert "models/of-14 (loss)" in told


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"dense": 11.0, "loss": 14.0}, "dense model has perplexity 11.0000, beside mgaa with 10.0000"),
        ({"mgaa": 14.0}, "names a run of mgaa"),
    ],
)
def test_a_run_on_other_texts_and_the_same_method_again_are_refused(
    tmp_path: Path, other: dict[str, float], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "one", uniform=40.0, mgaa=20.0)
    write_run(tmp_path / "two", **other)
    assert together(tmp_path, "two") == 3
    assert message in capsys.readouterr().err
