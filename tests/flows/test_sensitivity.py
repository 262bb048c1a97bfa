"""A study of sensitivity compresses one type at a time, everything else stays dense, and shares what the other flows have computed."""

import json

import pandas
import pytest

from flows.command.cli import main
from flows.sensitivity import sensitivity, show
from tests.support.laboratory import Outcome, TinyProject

pytestmark = pytest.mark.slow

GIVEN = ("factors.method=pooled", "sensitivity.compression=[0.3,0.6]")
TYPES = ["q", "k", "v", "o", "gate", "up", "down"]


@pytest.fixture
def studied(done: TinyProject) -> tuple[TinyProject, Outcome]:
    return done, done.run(*GIVEN, flow=sensitivity)


def test_every_type_is_compressed_alone_and_the_rest_is_shared(
    studied: tuple[TinyProject, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    lab, outcome = studied
    assert (outcome.code, outcome.message) == (0, "")
    assert outcome.executed == {"decompose": 3, "allocate_point": 14, "measure": 15}
    table = pandas.read_csv(lab.root / "results" / "sensitivity.csv")
    assert [*table.type] == [name for name in TYPES for _ in range(2)]
    (path,) = lab.artifacts("backbone")
    matrices = json.loads((path / "backbone.json").read_text())["matrices"]
    total = sum(each["m"] * each["n"] for each in matrices)
    for row in table.itertuples():
        own = [each for each in matrices if each["role"] == row.type]
        wanted = row.compression * sum(each["m"] * each["n"] for each in own) / total
        step = sum(each["m"] + each["n"] for each in own) / total  # a rank less of each of its matrices
        assert wanted <= row.removed < wanted + step
    points = [path for path in lab.artifacts("ranks") if (path / "ratios.json").exists()]  # the others are a level's
    assert len(points) == 14
    for made in points:
        ranks = json.loads((made / "ranks.json").read_text())["matrices"]
        assert len({name.rpartition(".")[2] for name, matrix in ranks.items() if matrix["rank"] is not None}) == 1
    assert {path.name for path in (lab.root / "results").glob("sensitivity.*")} == {
        *("sensitivity.csv", "sensitivity.png", "sensitivity.svg", "sensitivity.record.json")
    }
    assert main(lambda parameters: None, [f"--params={lab.root / 'params.yaml'}", *GIVEN], show=show) == 0
    printed = capsys.readouterr().out
    assert all(f"{name} alone" in printed for name in TYPES)
    assert lab.run(*GIVEN, flow=sensitivity) == Outcome(0, "", {})


def test_a_fraction_that_a_type_cannot_reach_is_told_by_its_name(done: TinyProject) -> None:
    outcome = done.run("sensitivity.compression=[0.99]", flow=sensitivity)
    assert (outcome.code, outcome.executed) == (2, {})
    assert "sensitivity.compression has 0.99, which q alone does not reach" in outcome.message


def test_what_shares_no_decomposition_is_refused(done: TinyProject) -> None:
    outcome = done.run("statistics.inputs=compressed", flow=sensitivity)
    assert (outcome.code, outcome.executed) == (2, {})
    assert "set statistics.inputs=dense" in outcome.message
