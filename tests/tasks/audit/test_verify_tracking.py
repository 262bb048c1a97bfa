"""An audit compares everything that MLflow has of a run, and leaves alone what people add there by hand."""

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mgaa.errors import ResourceError
from tasks.audit.verify_tracking import verify_tracking
from tasks.record.findings import Finding
from tasks.tracking.backend import tags_of
from tests.support.audited import Audited, audited, flipped, named


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    """A run in MLflow with its registered checkpoint; a test that breaks it mends it."""
    return audited(tmp_path_factory.mktemp("tracked") / "essai d'été", track=True, model="house")


def findings(lab: Audited) -> list[Finding]:
    record = json.loads((lab.store.path_of(lab.run) / "record.json").read_bytes())
    return [*verify_tracking(lab.p, lab.store, lab.run, record)]


@contextmanager
def changed(lab: Audited, statement: str) -> Iterator[None]:
    """MLflow's database after a statement; it is put back."""
    with closing(sqlite3.connect(lab.folder / "mlflow.db")) as database, closing(sqlite3.connect(":memory:")) as kept:
        database.backup(kept)
        with database:
            count = database.execute(statement).rowcount
        assert count > 0, f"nothing was changed by {statement}"
        try:
            yield
        finally:
            kept.backup(database)


def files(lab: Audited) -> list[Path]:
    found = sorted(path for path in (lab.folder / "mlruns").rglob("artifacts/**/*") if path.is_file())
    assert len(found) > 15
    return found


def test_nothing_is_found_where_nothing_was_changed(whole: Audited) -> None:
    assert findings(whole) == []


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("update latest_metrics set value = value + 1 where key = 'perplexity/mgaa'", "metric perplexity/mgaa"),
        ("update metrics set value = value + 1 where key = 'perplexity/mgaa'", "metric perplexity/mgaa"),
        ("update metrics set step = 3 where key = 'slack/mgaa'", "metric slack/mgaa"),
        ("update metrics set value = 0, is_nan = 1 where key = 'perplexity/dense'", "metric perplexity/dense"),
        ("delete from latest_metrics where key = 'perplexity/mgaa'", "metric perplexity/mgaa"),
        (
            "insert into metrics select key, value + 1, timestamp - 9, run_uuid, step, is_nan from metrics where key = 'slack/mgaa'",
            "metric slack/mgaa",
        ),
        (
            "insert into latest_metrics select 'accuracy', value, timestamp, step, is_nan, run_uuid from latest_metrics limit 1",
            "metric accuracy",
        ),
        ("update params set value = '0.4' where key = 'ratios.compression'", "parameter ratios.compression"),
        ("delete from params where key = 'ratios.compression'", "parameter ratios.compression"),
        ("insert into params select 'ratios.more', value, run_uuid from params limit 1", "parameter ratios.more"),
        ("update runs set status = 'FAILED'", "status"),
        ("update runs set user_id = 'somebody'", "user"),
        ("update tags set value = 'somebody' where key = 'mlflow.user'", "tag mlflow.user"),
        ("update tags set value = 'abc' where key = 'artifact.ranks.mgaa'", "tag artifact.ranks.mgaa"),
        ("update tags set value = 'abc' where key = 'git.commit'", "tag git.commit"),
        ("delete from tags where key = 'run.record'", "no run with the tag run.record"),
        ("update tags set value = 'abc' where key = 'registry.checkpoint'", "tag registry.checkpoint"),
        ("update model_versions set source = source || '/other'", "house version 1, source"),
        ("update model_version_tags set value = 'abc' where key = 'registry.checkpoint'", "house version 1, tag"),
    ],
)
def test_what_was_changed_in_the_database_is_found(whole: Audited, statement: str, told: str) -> None:
    with changed(whole, statement):
        assert told in named(findings(whole))


def test_one_changed_byte_of_any_file_of_the_run_is_found(whole: Audited) -> None:
    draw = random.Random(2)
    for path in files(whole):
        place = draw.randrange(1 << 20)
        if path.name in ("parameters.json", "evaluation_card.json", "lineage.json"):  # a blank there says nothing
            place = path.read_bytes().index(b'"') + 1
        mend = flipped(path, place)
        found = named(findings(whole))
        mend()
        assert path.name in found, path
    assert findings(whole) == []


@pytest.mark.parametrize("name", ["checkpoint/adapter_config.json", "results/other.json", "figures/new.png"])
def test_a_file_that_was_added_to_the_run_is_found(whole: Audited, name: str) -> None:
    root = next(path for path in files(whole) if path.name == "parameters.json").parent
    (root / name).write_text("{}")
    found = named(findings(whole))
    (root / name).unlink()
    assert f"{name}: was added" in found


@pytest.mark.slow
def test_a_file_that_was_removed_from_the_run_is_found(whole: Audited) -> None:
    for path in files(whole):
        path.rename(path.with_suffix(".away"))
        found = named(findings(whole))
        path.with_suffix(".away").rename(path)
        assert path.name in found, path


def test_notes_tags_and_files_that_people_add_are_theirs(whole: Audited) -> None:
    uri = f"sqlite:///{whole.folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'mgaa'")
    (run,) = client.search_runs([experiment.experiment_id])
    client.set_tag(run.info.run_id, "mlflow.note.content", "the model of the paper")
    client.log_text(run.info.run_id, "looked at", "notes/monday.txt")
    client.set_registered_model_alias("house", "champion", "1")
    assert findings(whole) == []
    client.delete_tag(run.info.run_id, "mlflow.note.content")
    client.delete_registered_model_alias("house", "champion")
    next(path for path in files(whole) if path.name == "monday.txt").unlink()


def test_the_tags_of_a_run_are_those_that_mlflow_tells(whole: Audited) -> None:
    uri = f"sqlite:///{whole.folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'mgaa'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert tags_of(uri, run.info.run_id) == run.data.tags
    with pytest.raises(ResourceError, match="has no run nobody"):
        tags_of(uri, "nobody")
    with pytest.raises(ResourceError, match="cannot be read"):
        tags_of(f"sqlite:///{whole.folder / 'nothing.db'}", "nobody")
    assert not (whole.folder / "nothing.db").exists()
