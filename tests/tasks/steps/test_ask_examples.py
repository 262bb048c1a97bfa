"""Recovery of a model that sees is trained on nine in ten questions, of which the answers alone are scored; images go with them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from demo import vlm
from demo.scenes import CAPTION, TYPES, examples
from mgaa.errors import InputError
from mgaa.recovery.examples import UNSCORED, Examples, collate
from tasks.artifacts.files import CARD, EXAMPLES, HELD_OUT, table
from tasks.cache.artifact import Artifact, Store
from tasks.steps.ask_examples import EVERY, SECTION, ask_examples
from tests.support.seeing import picture
from tests.support.vision import reading, referred, scenes, written

COUNT = 23
BLIND: list[dict[str, Any]] = [{"question": f"Who is number {index}?", "answer": "Ann"} for index in range(11)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("ask") / "store")


@pytest.fixture(scope="module")
def backbone(store: Store) -> Artifact:
    return referred(store)


@pytest.fixture(scope="module")
def questions(store: Store) -> Artifact:
    return reading(store, {SECTION: scenes(COUNT, "train")})


@pytest.fixture(scope="module")
def asked(store: Store, backbone: Artifact, questions: Artifact) -> Artifact:
    return ask_examples.fn(store, backbone, questions)


def loaded(store: Store, artifact: Artifact, name: str = EXAMPLES) -> Examples:
    return Examples.load(store.folder(artifact) / name)


def of_file(store: Store, backbone: Artifact, folder: Path, lines: list[dict[str, Any]], **images: Any) -> Artifact:
    given = written(folder, lines, {f"{name}.png": image for name, image in images.items()})
    return ask_examples.fn(store, backbone, reading(store, {SECTION: given}))


def test_every_tenth_question_is_held_out_and_none_is_in_both(store: Store, asked: Artifact) -> None:
    reader, drawn = vlm.processor(), examples("train", COUNT, 0, (*TYPES, CAPTION))
    parts = {
        HELD_OUT: [each for index, each in enumerate(drawn) if index % EVERY == 0],
        EXAMPLES: [each for index, each in enumerate(drawn) if index % EVERY],
    }
    assert [len(part) for part in parts.values()] == [3, 20]
    for name, part in parts.items():
        found = loaded(store, asked, name)
        texts = [reader.decode(found[index]["input_ids"]) for index in range(len(found))]
        assert texts == [f"<s>{16 * '<image>'}{each.question}\n{each.answer}</s>" for each in part]


def test_the_answers_are_scored_with_their_end_mark_and_nothing_else(store: Store, asked: Artifact) -> None:
    reader, drawn = vlm.processor(), examples("train", COUNT, 0, (*TYPES, CAPTION))
    found = loaded(store, asked)
    wanted = [each for index, each in enumerate(drawn) if index % EVERY]
    for index, expected in enumerate(wanted):
        ids, labels = found[index]["input_ids"], found[index]["labels"]
        scored = labels != UNSCORED
        assert torch.equal(labels[scored], ids[scored])
        assert reader.decode(labels[scored]) == f"{expected.answer}</s>"
        assert not scored[: -int(scored.sum())].any()


def test_the_images_of_an_example_are_its_own_and_survive_the_file(
    store: Store, asked: Artifact, tmp_path: Path
) -> None:
    found = loaded(store, asked)
    drawn = [each for index, each in enumerate(examples("train", COUNT, 0, (*TYPES, CAPTION))) if index % EVERY]
    pixels = vlm.processor().image_processor([each.image for each in drawn], return_tensors="pt").pixel_values
    assert torch.equal(torch.cat([found[index]["pixel_values"] for index in range(len(found))]), pixels)
    found.save(tmp_path / "again")
    again = Examples.load(tmp_path / "again")
    assert again.digest == found.digest
    assert (tmp_path / "again").read_bytes() == (store.folder(asked) / EXAMPLES).read_bytes()


def test_the_card_counts_what_is_trained_on(store: Store, questions: Artifact, asked: Artifact) -> None:
    found, card = loaded(store, asked), table(store, asked, CARD)
    assert card == {
        "examples": 20,
        "held_out": 3,
        "tokens": len(found.ids),
        "scored": found.scored,
        "data_digest": table(store, questions, CARD)["sections"][SECTION]["data_digest"],
        "token_digest": found.digest,
    }


def test_a_batch_has_its_images_in_order_and_zeros_behind_short_examples(store: Store, asked: Artifact) -> None:
    found = loaded(store, asked)
    order = sorted(range(len(found)), key=lambda index: len(found[index]["input_ids"]))
    short, long = found[order[0]], found[order[-1]]
    length, longest = len(short["input_ids"]), len(long["input_ids"])
    assert length < longest
    batch = collate([short, long])
    assert batch.keys() == {"input_ids", "attention_mask", "labels", "pixel_values"}
    assert batch["input_ids"].shape == (2, longest)
    assert torch.equal(batch["input_ids"][0, :length], short["input_ids"])
    assert torch.equal(batch["input_ids"][1], long["input_ids"])
    assert batch["attention_mask"].sum(1).tolist() == [length, longest]
    assert (batch["labels"][0, length:] == UNSCORED).all()
    assert torch.equal(batch["pixel_values"], torch.cat([short["pixel_values"], long["pixel_values"]]))


def test_examples_with_an_image_and_without_one_go_into_one_batch(
    store: Store, backbone: Artifact, tmp_path: Path
) -> None:
    shown = [{"image": f"{name}.png", "question": "What?", "answer": "a cup"} for name in "ab"]
    mixed = [BLIND[0], shown[0], BLIND[1], shown[1]]
    found = loaded(store, of_file(store, backbone, tmp_path / "data", mixed, a=picture(1), b=picture(2)))
    assert [("pixel_values" in found[index]) for index in range(len(found))] == [True, False, True]
    batch = collate([found[index] for index in range(3)])
    assert torch.equal(batch["pixel_values"], torch.cat([found[0]["pixel_values"], found[2]["pixel_values"]]))
    image_token = vlm.processor().image_token_id
    assert (batch["input_ids"] == image_token).sum(1).tolist() == [16, 0, 16]


def test_what_a_model_takes_of_every_token_is_padded_like_the_tokens() -> None:
    ids = [torch.arange(3), torch.arange(5)]
    examples = [{"input_ids": each, "labels": each, "token_kinds": torch.ones(1, len(each))} for each in ids]
    assert collate(examples)["token_kinds"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_questions_about_no_image_give_examples_without_any(store: Store, backbone: Artifact, tmp_path: Path) -> None:
    found = loaded(store, of_file(store, backbone, tmp_path / "data", BLIND))
    assert (len(found), found.images) == (9, ())
    assert collate([found[0], found[1]]).keys() == {"input_ids", "attention_mask", "labels"}


def test_a_pixel_changes_the_identity(store: Store, backbone: Artifact, tmp_path: Path) -> None:
    changed = picture(1)
    changed.putpixel((8, 8), tuple(255 - each for each in changed.getpixel((8, 8))))
    lines = [{"image": "a.png", "question": "What?", "answer": "a cup"}, BLIND[0]] * 2
    first, same, other = (
        of_file(store, backbone, tmp_path / name, lines, a=image)
        for name, image in (("first", picture(1)), ("same", picture(1)), ("other", changed))
    )
    assert first == same != other
    digests = [table(store, each, CARD)["token_digest"] for each in (first, other)]
    assert digests[0] != digests[1]
    assert torch.equal(loaded(store, first).ids, loaded(store, other).ids)


def test_one_question_leaves_nothing_to_train_on(store: Store, backbone: Artifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there are 0 prompts, expected at least one: give more questions"):
        of_file(store, backbone, tmp_path / "data", BLIND[:1])
