"""Items of the standard tasks come from the Hub at the commit that it has, as the files a user would give; a silent Hub is one message."""

import json
import socket
import time
from pathlib import Path

import pytest

from mgaa.errors import InputError, UsageError
from tasks.artifacts.files import CARD, read_table
from tasks.artifacts.specs import HubItems
from tasks.cache.artifact import Store
from tasks.data import hub_datasets
from tasks.data.documents import read_documents
from tasks.evaluation import hub_tasks
from tasks.evaluation.zero_shot import OFFICIAL
from tasks.steps.fetch_items import fetch_items

COMMIT = "b08601e04326c79dfdd32d625aee71d232d685c3"


def test_every_standard_task_has_the_data_set_and_the_split_that_the_harness_evaluates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_tasks, "commit_of", lambda source: COMMIT)
    found = hub_tasks.hub_items([*OFFICIAL])
    assert found["arc_challenge"] == HubItems("allenai/ai2_arc", "ARC-Challenge", "test", COMMIT)
    assert found["hellaswag"] == HubItems("Rowan/hellaswag", None, "validation", COMMIT)
    assert {each.split for each in found.values()} == {"test", "validation"}
    assert all("/" in each.source for each in found.values())
    with pytest.raises(UsageError, match="image_choice has no data set on the Hub: set it to a folder"):
        hub_tasks.hub_items(["arc_easy", "image_choice"])


def test_the_items_are_the_rows_of_the_split_and_tell_where_they_are_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    rows = [{"goal": "Boil water", "sol1": "heat it", "sol2": "freeze it", "label": 0}] * 2
    held = datasets.DatasetDict({"validation": datasets.Dataset.from_list(rows)})
    monkeypatch.setattr(hub_datasets, "load_from_hub", lambda source, subset, revision: held)
    store, items = Store(tmp_path), {"piqa": HubItems("baber/piqa", None, "validation", COMMIT)}
    made = fetch_items.fn(store, items=items)
    lines = (store.folder(made) / "piqa.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert read_table(store, made, CARD)["piqa"]["revision"] == COMMIT
    assert fetch_items.fn(store, items=items) == made


@pytest.mark.parametrize("listens", [False, True])
def test_a_hub_that_does_not_answer_is_one_message_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listens: bool
) -> None:
    monkeypatch.setattr(hub_datasets, "PATIENCE", 0.5)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(InputError, match=r"^the Hub does not tell the commit of baber/piqa .*: give a network"):
            hub_tasks.hub_items(["piqa"])
        with pytest.raises(InputError, match=r"cannot be loaded from the Hub, which does not answer .*: give a public"):
            read_documents("nobody/nothing", split="test", revision=COMMIT, protocol="wikitext2")
    assert time.monotonic() - start < 30
    assert [*tmp_path.iterdir()] == []
