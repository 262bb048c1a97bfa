"""Conversations are documents like texts, and become tokens as the model's own chat template writes them."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from mgaa.errors import InputError, UsageError
from tasks.artifacts.files import CARD, EXAMPLES, documents_of, read_table, texts_of, token_stream
from tasks.cache.artifact import Artifact, Store
from tasks.config.parameters import load_parameters
from tasks.data.chats import render_question
from tasks.data.documents import digest, read_documents
from tasks.steps.make_examples import make_examples
from tasks.steps.read_texts import READING, read_texts, source_content
from tasks.steps.tokenize import tokenize
from tests.support.finished import write_model
from tests.support.processes import ROOT
from tests.support.vision import referred

BOS, EOS = 61, 62
TEMPLATE = (
    "{{ bos_token }}{% for turn in messages %}{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{{ ' w1 ' if turn['role'] == 'user' else ' w2 ' }}{{ turn['content'] }} {{ eos_token }}{% endfor %}"
)


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(said)]


def put(path: Path, *given: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def section(source: Path, **given: Any) -> dict[str, Any]:
    read = {
        "source": str(source),
        "split": None,
        "revision": None,
        "subset": None,
        "field": "text",
        "separator": "auto",
    }
    return {**read, "form": "chat", "nulls": "stop", "from": 0.0, "to": 1.0, **given}


def reading(store: Store, **sections: dict[str, Any]) -> Artifact:
    content = {name: source_content(given["source"]) for name, given in sections.items()}
    return read_texts.fn(store, sections=sections, content=content)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def model(store: Store, folder: Path, template: str | None = TEMPLATE) -> Artifact:
    write_model(folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return referred(store, folder)


CHATS = [turns("w3 w4", "w5"), turns("w6", "w7 w8", "w9", "w10")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHATS[0]},
        {"id": 1, "conversations": CHATS[0]},
        {"conversations": [{"from": "human", "value": "w3 w4"}, {"from": "gpt", "value": "w5"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "w3 w4"}], "name": None}, CHATS[0][1]]},
        CHATS[0],
    ],
)
def test_a_row_is_a_conversation_in_the_forms_that_are_common(tmp_path: Path, row: Any) -> None:
    assert read_documents(put(tmp_path / "a.jsonl", row), form="chat").texts == [CHATS[0]]


def test_another_field_can_be_the_conversation_and_a_list_of_rows_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"dialog": each} for each in CHATS]))
    found = read_documents(tmp_path / "a.json", form="chat", field="dialog")
    assert found.texts == CHATS
    assert (found.identity["form"], found.identity["separator"]) == ("chat", "every row")


def test_a_table_has_conversations_too(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([{"messages": each} for each in CHATS]), tmp_path / "a.parquet")
    assert read_documents(tmp_path / "a.parquet", form="chat").texts == CHATS
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.parquet").rename(tmp_path / "folder" / "train.parquet")
    assert read_documents(tmp_path / "folder", split="train", form="chat").texts == CHATS


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "w1"}, "has no conversation in 'messages' or 'conversations'; there is: text: set `field`"),
        ({"messages": None}, "has a conversation without messages"),
        ({"messages": []}, "has a conversation without messages"),
        ({"messages": "w1"}, "has the conversation 'w1', expected a list of messages"),
        ("w1", "has the conversation 'w1', expected a list of messages"),
        ({"messages": ["w1"]}, "message 1, is 'w1', expected a role and a content, both texts"),
        ({"messages": [*CHATS[0], {"role": "user"}]}, "message 3, is .*expected a role and a content"),
        ({"messages": [{"role": "user", "content": None}]}, "message 1, is .*expected a role and a content"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1, is .*expected a role"),
        ({"conversations": [{"from": "me", "value": "w1"}]}, "message 1, is from 'me', expected one of human, user, gpt"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_by_its_row(tmp_path: Path, row: Any, message: str) -> None:
    path = put(tmp_path / "a.jsonl", {"messages": CHATS[0]}, row)
    with pytest.raises(InputError, match=f"Line 2 of .*{message}"):
        read_documents(path, form="chat")


def test_rows_without_a_conversation_can_be_left_out(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", {"messages": CHATS[0]}, {"messages": None}, {"messages": []}, {"id": 1})
    found = read_documents(path, form="chat", nulls="skip")
    assert (found.texts, found.identity["left_out"]) == ([CHATS[0]], 3)


def test_text_has_no_conversations(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("w1")
    with pytest.raises(InputError, match=r"is text by its ending, expected conversations in rows"):
        read_documents(tmp_path / "a.txt", form="chat")


def test_tokens_are_those_of_the_template_and_no_mark_is_doubled(store: Store, tmp_path: Path) -> None:
    backbone = model(store, tmp_path / "model")
    texts = reading(store, calibration=section(put(tmp_path / "a.jsonl", *({"messages": each} for each in CHATS))))
    tokens = tokenize.fn(store, backbone, texts, section="calibration", length=2, samples=None, seed=0)
    ids, card = token_stream(store, tokens)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    expected = [tokenizer.apply_chat_template(each)["input_ids"] for each in CHATS]
    assert ids.tolist() == [each for ids_of in expected for each in ids_of]
    assert ids.tolist() == [BOS, 1, 3, 4, EOS, 2, 5, EOS, BOS, 1, 6, EOS, 2, 7, 8, EOS, 1, 9, EOS, 2, 10, EOS]
    assert card["bos_rule"].startswith("chat template ")
    assert card["documents"] == 2
    assert card["data_digest"] == digest(documents_of(store, texts, "calibration"))
    assert card["data_digest"] == read_table(store, texts, CARD)["sections"]["calibration"]["data_digest"]


def test_a_question_ends_where_the_model_is_to_answer(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE + "{% if add_generation_prompt %} w2{% endif %}")
    assert render_question("w3", AutoTokenizer.from_pretrained(tmp_path / "model")) == "<s> w1 w3 </s> w2"


def test_what_does_not_depend_on_a_model_sees_what_is_said(store: Store, tmp_path: Path) -> None:
    texts = reading(store, calibration=section(put(tmp_path / "a.jsonl", *({"messages": each} for each in CHATS))))
    assert documents_of(store, texts, "calibration") == CHATS
    assert texts_of(store, texts, "calibration") == ["w3 w4\n\nw5", "w6\n\nw7 w8\n\nw9\n\nw10"]


def test_a_conversation_overlaps_with_the_text_that_it_quotes(store: Store, tmp_path: Path) -> None:
    said = " ".join(f"word{index}" for index in range(60))
    chats = put(tmp_path / "a.jsonl", {"messages": turns("Tell me.", said)})
    text = put(tmp_path / "b.jsonl", {"text": said})
    with pytest.raises(InputError, match="calibration and evaluation texts overlap"):
        reading(store, calibration=section(chats), evaluation=section(text, form="text"))


def test_a_model_without_a_chat_template_is_told_of(store: Store, tmp_path: Path) -> None:
    backbone = model(store, tmp_path / "model", None)
    texts = reading(store, validation=section(put(tmp_path / "a.jsonl", {"messages": CHATS[0]})))
    with pytest.raises(
        UsageError, match=r"data.validation.form is 'chat', but .* no chat template: put .*chat_template.jinja"
    ):
        tokenize.fn(store, backbone, texts, section="validation", length=2, samples=None, seed=0)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (TEMPLATE, "Conversation roles must alternate user/assistant"),
        ("{{ messages[0]['content'] + 3 }}", "concatenate|unsupported operand"),
        ("{{ nowhere.at.all }}", "undefined"),
        ("{% for", "unexpected|Expected"),
    ],
)
def test_a_template_that_refuses_a_conversation_is_quoted_with_which(
    store: Store, tmp_path: Path, template: str, reason: str
) -> None:
    backbone = model(store, tmp_path / "model", template)
    wrong = [{"role": "assistant", "content": "w11 w12"}]
    first = [{"messages": CHATS[0]}] if template == TEMPLATE else []
    texts = reading(store, calibration=section(put(tmp_path / "a.jsonl", *first, {"messages": wrong})))
    number = len(first) + 1
    with pytest.raises(
        InputError, match=rf"refuses conversation {number} of data.calibration, which begins 'w11 w12' \(.*({reason})"
    ):
        tokenize.fn(store, backbone, texts, section="calibration", length=2, samples=None, seed=0)


def test_recovery_is_trained_on_conversations_that_are_not_those_of_the_evaluation(
    store: Store, tmp_path: Path
) -> None:
    backbone = model(store, tmp_path / "model")
    said = [turns("w20 " * 60, "w21 " * 60), turns("w22 " * 60, "w23 " * 60)]
    held_out = put(tmp_path / "b.jsonl", {"messages": said[0]})
    texts = reading(
        store, evaluation=section(held_out), validation=section(put(tmp_path / "c.jsonl", "w3"), form="text")
    )
    given: dict[str, Any] = {"form": "chat", "length": 8, "samples": None, "seed": 0}
    train = put(tmp_path / "a.jsonl", {"messages": said[1]})
    content = source_content(str(train))
    made = make_examples.fn(store, backbone, texts, section=section(train), **given, content=content)
    assert (store.folder(made) / EXAMPLES).exists()
    assert (read_table(store, made, CARD)["examples"], read_table(store, made, CARD)["form"]) == (15, "chat")
    with pytest.raises(InputError, match="recovery and evaluation texts overlap"):
        make_examples.fn(store, backbone, texts, section=section(held_out), **given, content=content)


@pytest.mark.slow
def test_the_demo_holds_no_conversations(store: Store) -> None:
    with pytest.raises(UsageError, match="The demo holds texts, no conversations"):
        reading(store, calibration={**section(Path("demo")), "split": "calibration"})


def test_a_section_says_its_form() -> None:
    found = load_parameters(
        ROOT / "params.yaml",
        [f"data.{name}.form=chat" for name in ("calibration", "validation", "evaluation", "recovery")],
    )
    assert {found.data.calibration.form, found.data.validation.form, found.data.evaluation.form} == {"chat"}
    assert set(READING) <= set(found.data.recovery.model_dump(by_alias=True))
    with pytest.raises(UsageError, match=r"data.validation: expected separator: auto with form: chat, got 'lines'"):
        load_parameters(ROOT / "params.yaml", ["data.validation.form=chat", "data.validation.separator=lines"])
