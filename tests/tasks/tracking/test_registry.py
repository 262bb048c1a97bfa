"""A version becomes the champion when it keeps to every bound of the gate, and not otherwise; runs stand side by side."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.store.model_registry.dbmodels.models import SqlRegisteredModelAlias
from sqlalchemy import event
from sqlalchemy.orm import Session

from flows.command import subcommands
from flows.registry import compare, list_, promote
from mgaa.errors import InputError, UsageError
from tasks.cache.artifact import Artifact
from tasks.config.parameters import Parameters, load_parameters
from tasks.tracking import comparison, promotion
from tasks.tracking.registration import CANDIDATE, CHAMPION, set_alias
from tasks.tracking.run import track_run
from tests.support.databases import copy_database
from tests.support.finished import ROOT, finished_run

GOOD = {
    "perplexity/dense": 10.0,
    "perplexity/mgaa": 10.4,
    "model_compression/mgaa": 0.16,
    "bytes/mgaa": 6.8e6,
    "tasks/dense/last_word/acc": 0.50,
    "tasks/mgaa/last_word/acc": 0.48,
    "questions/dense/scenes/accuracy": 0.54,
    "questions/mgaa/scenes/accuracy": 0.55,
}
GATE = {"perplexity": 1.05, "model_compression": 0.1, "accuracy": 3.0, "champion": 1.0}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the module."""
    return copy_database(tmp_path_factory.mktemp("registry") / "mlflow.db")


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A registered model of the test's own, and an experiment of the same name."""
    return request.node.name.partition("[")[0].replace("test_", "")


def parameters(database: Path, model: str, *more: str) -> Parameters:
    where = [f"tracking.uri=sqlite:///{database}", f"tracking.experiment={model}", f"registry.model={model}"]
    bounds = [f"registry.gate.{name}={value}" for name, value in GATE.items()]
    return load_parameters(ROOT / "params.yaml", [*where, *bounds, *more])


def offered(params: Parameters, metrics: dict[str, float], title: str = "a run") -> str:
    """A run that measured this and registered a checkpoint."""
    given = finished_run()
    params._folder = given.parameters.folder  # where there is a checkpoint
    with track_run(params, title=title) as run:
        run.log_metrics(metrics)
        run.offer(str(params.registry.model), given.results.models["mgaa"].checkpoint)
    return run.id


@pytest.mark.parametrize("alias", [CANDIDATE, CHAMPION])
def test_an_alias_that_two_writers_set_for_the_first_time_at_once_is_set(
    database: Path, model: str, alias: str
) -> None:
    offered(parameters(database, model), GOOD)
    offered(parameters(database, model), GOOD)
    client = MlflowClient(f"sqlite:///{database}")
    if alias == CANDIDATE:
        client.delete_registered_model_alias(model, alias)

    first: list[str] = []

    def set_first(session: Session, *_: object) -> None:
        """The other writer, between MLflow's look at the database and its insertion."""
        if not first and any(isinstance(new, SqlRegisteredModelAlias) for new in session.new):
            first.append(alias)
            client.set_registered_model_alias(model, alias, "1")

    event.listen(Session, "before_flush", set_first)
    set_alias(client, model, alias, "2")
    event.remove(Session, "before_flush", set_first)
    assert first == [alias]
    assert client.get_model_version_by_alias(model, alias).version in ("2", 2)


def test_a_run_registers_its_checkpoint_as_candidate(database: Path, model: str, tmp_path: Path) -> None:
    params = parameters(database, model)
    first, second = offered(params, GOOD), offered(params, GOOD)
    one, two = promotion.versions(params)
    assert (one.run, one.aliases) == (first, ())
    assert (two.run, two.aliases) == (second, ("candidate",))
    checkpoint: Artifact = finished_run().results.models["mgaa"].checkpoint
    assert two.tags["registry.checkpoint"] == checkpoint.digest
    client = MlflowClient(params.tracking_uri)
    source = Path(client.get_model_version(model, "2").source.removeprefix("file://"))
    exported = finished_run().parameters.folder / "models" / "compressed"
    assert {path.name: path.read_bytes() for path in source.iterdir()} == {
        path.name: path.read_bytes() for path in exported.iterdir()
    }


def test_the_candidate_that_passes_becomes_the_champion(database: Path, model: str) -> None:
    params = parameters(database, model)
    offered(params, GOOD)
    assert promotion.promote(params).number == 1
    assert promotion.versions(params)[0].aliases == ("candidate", "champion")
    offered(params, GOOD | {"perplexity/mgaa": 10.3})
    assert promotion.promote(params).number == 2
    assert promotion.promote(params, 2).number == 2  # again: it is as good as itself
    assert [each.aliases for each in promotion.versions(params)] == [(), ("candidate", "champion")]


MISSES = {
    "perplexity": ({"perplexity/mgaa": 10.6}, r"perplexity is 1\.0600 times dense's, expected at most 1\.05"),
    "size": ({"model_compression/mgaa": 0.09}, r"model_compression is 0\.0900, expected at least 0\.1"),
    "task": ({"tasks/mgaa/last_word/acc": 0.46}, r"last_word is 4\.00 points below dense, expected at most 3"),
    "questions": ({"questions/mgaa/scenes/accuracy": 0.4}, r"scenes is 14\.00 points below dense"),
    "bytes": ({"bytes/mgaa": 6.9e6}, r"6900000 bytes are more than the champion's 6800000"),
    "champion": ({"perplexity/mgaa": 10.45}, r"perplexity is 10\.4500, the champion's 10\.4000 \(version 1\)"),
    "no number": ({"perplexity/mgaa": float("nan")}, r"perplexity is nan times dense's"),
}


def test_a_candidate_that_misses_a_bound_is_refused_and_the_champion_stays(database: Path, model: str) -> None:
    params = parameters(database, model)
    offered(params, GOOD)
    promotion.promote(params)
    for metrics, message in MISSES.values():
        offered(params, GOOD | metrics)
        with pytest.raises(InputError, match=rf"{message}.*version 1 stays champion"):
            promotion.promote(params)
    assert promotion.versions(params)[0].aliases == ("champion",)


def test_a_candidate_may_be_worse_than_the_champion_by_its_bound(database: Path, model: str) -> None:
    params = parameters(database, model)
    offered(params, GOOD)
    promotion.promote(params)
    offered(params, GOOD | {"perplexity/mgaa": 10.45})  # 1.0048 times the champion's
    with pytest.raises(InputError, match=r"expected at most 1\.004 times that"):
        promotion.promote(parameters(database, model, "registry.gate.champion=1.004"))
    assert promotion.promote(parameters(database, model, "registry.gate.champion=1.005")).number == 2


def test_one_message_names_every_bound_and_what_was_not_measured(database: Path, model: str) -> None:
    params = parameters(database, model)
    offered(params, {"perplexity/dense": 10.0, "perplexity/mgaa": 12.0})
    with pytest.raises(InputError) as caught:
        promotion.promote(params)
    told = str(caught.value)
    assert [f"registry.gate.{name}" in told for name in ("perplexity", "model_compression", "accuracy")] == [True] * 3
    assert "no task was measured" in told
    assert "there is no champion" in told
    free = [f"registry.gate.{name}=null" for name in GATE]
    assert promotion.promote(parameters(database, model, *free)).number == 1


def test_what_is_not_registered_is_usage(database: Path, model: str) -> None:
    with pytest.raises(UsageError, match=r"registry\.model is null"):
        promotion.promote(parameters(database, model, "registry.model=null"))
    with pytest.raises(UsageError, match="has no version in MLflow"):
        promotion.promote(parameters(database, model))
    offered(parameters(database, model), GOOD)
    with pytest.raises(UsageError, match="no version 7: expected one of 1"):
        promotion.promote(parameters(database, model), 7)


def test_runs_stand_side_by_side(database: Path, model: str) -> None:
    p, other = parameters(database, model), parameters(database, model, "ratios.compression=0.3", "factors.method=svd")
    one, two = offered(p, GOOD, "first"), offered(other, GOOD | {"perplexity/mgaa": 11.0}, "second")
    found = comparison.compare(p)
    assert [run["id"] for run in found["runs"]] == [one, two]
    assert found["parameters"] == {"ratios.compression": ["0.2", "0.3"], "factors.method": ["afm", "svd"]}
    assert found["metrics"]["perplexity/mgaa"] == [10.4, 11.0]
    for words in ([two, one], ["second", one[:8]], ["candidate", "1"]):
        assert [run["id"] for run in comparison.compare(p, words)["runs"]] == [two, one]
    with pytest.raises(UsageError, match=r"'third' means 0 runs: expected .*first"):
        comparison.compare(p, ["third"])
    offered(p, GOOD, "first")
    with pytest.raises(UsageError, match="'first' means 2 runs"):
        comparison.compare(p, ["first"])


def test_the_commands_tell_it_to_people_and_to_programs(
    database: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    offered(parameters(database, model), GOOD, "the run")
    given = [f"tracking.uri=sqlite:///{database}", f"tracking.experiment={model}", f"registry.model={model}"]

    def told(*words: str) -> tuple[int, Any, str]:
        wanted = {"list": list_, "promote": promote, "compare": compare}
        code = subcommands.main(wanted, [*words, f"--params={ROOT / 'params.yaml'}", *given])
        out, error = capsys.readouterr()
        return code, out, error

    assert told("promote", "1")[:2] == (0, f"Version 1 of {model} is the champion.\n")
    code, out, _ = told("list")
    assert (code, [word in out for word in ("candidate champion", "1.0400", "16.0%", "the run")]) == (0, [True] * 4)
    assert json.loads(told("list", "--json")[1])[0]["aliases"] == ["candidate", "champion"]
    code, out, _ = told("compare", "champion")
    assert (code, "perplexity/mgaa" in out) == (0, True)
    assert json.loads(told("compare", "--json")[1])["metrics"]["perplexity/mgaa"] == [10.4]
    code, _, error = told("promote", "registry.gate.perplexity=1.01")
    assert (code, "registry.gate.perplexity" in error) == (3, True)
