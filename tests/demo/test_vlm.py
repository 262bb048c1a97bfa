"""The demo vision-language model: its text, masks and first stage are right; the committed one sees, and its record is true."""

import json
import re
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from demo import dialogues, scenes, tower, train_vlm, vlm, vlm_record
from demo.corpus import RECORD
from demo.scenes import CAPTION, PLACES, TYPES, Example, Thing
from mgaa.errors import NumericalError, UsageError

FOLDER = Path(__file__).parents[2] / "models" / "demo-vlm"
TRAINING = json.loads((FOLDER / "training.json").read_text())
SCENE = (Thing(0, "ring", "red"), Thing(8, "cross", "teal"))


@pytest.fixture(scope="module")
def reader() -> LlavaProcessor:
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture
def fresh(reader: LlavaProcessor) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    return vlm.build(reader)


def few(seed: int = 0) -> list[dialogues.Dialogue]:
    return dialogues.Source(Random(seed)).take(4, 5)


def test_the_prompt_is_that_of_the_chat_template(reader: LlavaProcessor) -> None:
    image = Image.new("RGB", (64, 64))
    messages = vlm.conversation([("is it a ring?", "no"), ("what is it?", None)], image)
    text = reader.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s><image>is it a ring?\nno</s>what is it?\n"
    plain = [{"role": "user", "content": "what is it?"}]
    assert reader.apply_chat_template(plain, tokenize=False) == "<s>what is it?\n"


def test_an_image_is_16_tokens_between_the_start_and_the_question(reader: LlavaProcessor) -> None:
    ids = reader.apply_chat_template(
        vlm.conversation([("what is it?", None)], Image.new("RGB", (100, 80))), tokenize=True, return_dict=True
    )["input_ids"][0]
    assert ids[:17] == [0] + [reader.image_token_id] * 16
    assert reader.image_token_id not in ids[17:]


def test_every_turn_is_read_as_if_it_were_alone_behind_its_image(
    reader: LlavaProcessor, fresh: LlavaForConditionalGeneration
) -> None:
    taken = few()
    rows = dialogues.encode(reader, taken)
    inputs = {"input_ids": rows.ids, "pixel_values": rows.images, "position_ids": rows.positions}
    with torch.no_grad():
        together = fresh(**inputs, attention_mask=rows.visible).logits
        for row, (image, turns) in enumerate(taken):
            start = 17
            for turn in turns:
                alone = reader.apply_chat_template(
                    vlm.conversation([turn], image), tokenize=True, return_dict=True, return_tensors="pt"
                )
                end = start + alone["input_ids"].shape[1] - 17
                assert rows.ids[row, start:end].equal(alone["input_ids"][0, 17:])
                torch.testing.assert_close(
                    together[row, start:end], fresh(**alone).logits[0, 17:], rtol=1e-4, atol=1e-4
                )
                start = end
    torch.testing.assert_close(rows.images[-1:], alone["pixel_values"])


def test_what_is_learned_is_every_answer_and_its_end(reader: LlavaProcessor) -> None:
    rows = dialogues.encode(reader, few())
    for row, kept, (_, turns) in zip(rows.ids, rows.learned, few(), strict=True):
        assert reader.decode(row[kept]) == "".join(f"{answer}</s>" for _, answer in turns)


def test_dialogues_repeat_with_the_seed_and_know_their_limits() -> None:
    assert [turns for _, turns in few()] == [turns for _, turns in few()]
    assert [turns for _, turns in few()] != [turns for _, turns in few(1)]
    for _, turns in dialogues.Source(Random(0)).take(30, 5, most=1):
        assert 1 <= len(turns) <= 5
        assert not any(answer in "234" for question, answer in turns if question.startswith("how many"))


def test_images_of_easy_vqa_come_with_their_own_questions() -> None:
    images = [Image.new("RGB", (64, 64), (number, 0, 0)) for number in range(3)]
    easy = [
        Example(image, f"{number} {turn}?", "yes", "presence") for number, image in enumerate(images) for turn in "ab"
    ]
    source = dialogues.Source(Random(0), easy)
    found = [each for each in source.take(60, 4) if each[1][0][1] == "yes" and each[1][0][0][0].isdigit()]
    assert 5 <= len(found) <= 30
    assert all(question.startswith(str(image.getpixel((0, 0))[0])) for image, turns in found for question, _ in turns)


def test_the_tower_is_told_what_lies_under_each_patch() -> None:
    cells, shapes, colours = (each[0].tolist() for each in tower.labels([SCENE], patch=16))
    assert cells == [0, 1, 1, 2, 3, 4, 4, 5, 3, 4, 4, 5, 6, 7, 7, 8]
    assert (shapes[0], colours[0]) == (scenes.SHAPES.index("ring"), list(scenes.COLOURS).index("red"))
    assert (shapes[15], colours[15]) == (scenes.SHAPES.index("cross"), list(scenes.COLOURS).index("teal"))
    assert set(shapes[1:15]) == {len(scenes.SHAPES)}
    assert set(colours[1:15]) == {len(scenes.COLOURS)}


def test_the_first_stage_brings_the_projector_to_the_words(fresh: LlavaForConditionalGeneration) -> None:
    embeddings = fresh.get_input_embeddings().weight.detach()
    vocabulary = tower.word_embeddings(embeddings, vlm.tokenizer())
    ids = vlm.tokenizer()(["centre", " centre"])["input_ids"]
    torch.testing.assert_close(
        vocabulary[0][PLACES.index("centre")], (embeddings[ids[0]].mean(0) + embeddings[ids[1]].mean(0)) / 2
    )
    curve = tower.fit(
        fresh.model.vision_tower,
        fresh.model.multi_modal_projector,
        vocabulary,
        steps=20,
        batch=8,
        rate=2e-3,
        seed=0,
    )
    assert curve[-1][1] < 0.8 * curve[0][1]


def test_a_built_model_writes_as_the_language_model_does(fresh: LlavaForConditionalGeneration) -> None:
    rows = torch.arange(2, 66).reshape(2, 32)
    backbone = AutoModelForCausalLM.from_pretrained(vlm.BACKBONE, dtype=torch.float32)
    torch.testing.assert_close(fresh(input_ids=rows).logits[..., :4096], backbone(input_ids=rows).logits)


@pytest.mark.slow
def test_training_together_lowers_the_loss_of_answers(
    reader: LlavaProcessor, fresh: LlavaForConditionalGeneration
) -> None:
    plan = train_vlm.Plan(steps=12, batch=2, turns=3, text_batch=1, text_length=32)
    texts = [torch.arange(0, 2000) % 4096]
    curve = train_vlm.fit(fresh, reader, texts, [], scenes.examples("validation", 5), plan)
    assert curve[-1][0] == 12
    assert curve[-1][1] < curve[0][1] - 1


def test_a_loss_that_is_not_finite_stops_the_training_with_the_remedy(
    reader: LlavaProcessor, fresh: LlavaForConditionalGeneration
) -> None:
    plan = train_vlm.Plan(steps=3, batch=1, turns=1, text_batch=1, text_length=32, rate=float("inf"))
    with pytest.raises(NumericalError, match="--rate"):
        train_vlm.fit(fresh, reader, [torch.arange(0, 2000)], [], scenes.examples("validation", 5), plan)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"tower_steps": 0}, {"rate": 0.0}])
def test_a_plan_without_steps_or_rate_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be above 0"):
        train_vlm.check(train_vlm.Plan(**wrong))  # type: ignore[arg-type]


def test_the_committed_model_is_a_small_llava_in_bfloat16() -> None:
    model = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype="auto")
    assert isinstance(model, LlavaForConditionalGeneration)
    assert model.dtype == torch.bfloat16
    assert vlm_record._parameters(model) == TRAINING["parameters"]
    assert model.num_parameters() == sum(TRAINING["parameters"].values()) <= 6e6
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 16 * 2**20


def test_the_committed_processor_works_on_pillow_alone(reader: LlavaProcessor) -> None:
    assert "torchvision" not in sys.modules
    assert type(reader.image_processor).__name__ == "CLIPImageProcessorPil"
    assert reader.tokenizer.padding_side == "left"


def test_the_committed_model_answers_questions_about_unseen_scenes(
    model: LlavaForConditionalGeneration, reader: LlavaProcessor
) -> None:
    asked = scenes.examples("test", 60, seed=7)
    assert vlm_record.accuracy(model, reader, asked) >= 0.42
    assert (
        sum(a == b.answer for a, b in zip(vlm_record.answers(model, reader, asked, see="blank"), asked, strict=True))
        <= 22
    )


def test_the_committed_model_describes_an_image(model: LlavaForConditionalGeneration, reader: LlavaProcessor) -> None:
    captions = scenes.examples("test", 20, types=[CAPTION])
    assert vlm_record.caption_perplexity(model, reader, captions) < 1.5


def test_an_image_changes_the_answer(model: LlavaForConditionalGeneration, reader: LlavaProcessor) -> None:
    pair = [scenes.draw((Thing(4, "circle", colour),), Random(0)) for colour in ("blue", "red")]
    assert vlm.answer(model, reader, [(each, "what color is the shape?") for each in pair]) == ["blue", "red"]


def test_the_record_names_the_drawn_data_and_the_text() -> None:
    test = TRAINING["scenes"]["test"]
    assert vlm_record.digest(scenes.examples("test", test["questions"])) == test["sha256"]
    text = json.loads(RECORD.read_text())["splits"]
    assert TRAINING["docstrings"] == {name: text[name]["sha256"] for name in ("train", "test")}


def test_the_record_says_that_images_are_needed() -> None:
    scores = TRAINING["results"]["scenes"]
    assert set(scores) == {"overall", *TYPES}
    assert scores["overall"]["image"] > 2 * max(scores["overall"][see] for see in ("blank", "text", "majority"))


def test_every_number_of_the_readme_is_in_the_record() -> None:
    readme = (FOLDER / "README.md").read_text()
    results = TRAINING["results"]
    for table in ("scenes", "easy_vqa"):
        for kind, score in results[table].items():
            cells = " | ".join(
                f"{100 * score[see]:.1f} %" for see in ("image", "blank", "text", "majority") if see in score
            )
            assert re.search(rf"\| {kind} \| {score['questions']:,} \| {re.escape(cells)} \|", readme), (table, kind)
    text = results["text_perplexity"]
    for value in (text["this_model"], text["models_demo"], results["caption_perplexity"]):
        assert f"{value:.2f}" in readme
    assert f"{100 * text['change']:+.1f} %" in readme
    for value in (TRAINING["plan"]["steps"], TRAINING["plan"]["tower_steps"], *TRAINING["seen"].values()):
        assert f"{value:,}" in readme
