"""The harness's multimodal task runs on local files, and what it counts is what the model says to the same questions."""

import json
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.evaluation.answering import answer
from mgaa.inputs.prompts import Question
from mgaa.models.entries import MULTIMODAL
from tasks.data.questions import open_image, read_question_file
from tasks.evaluation import zero_shot
from tests.mgaa.conftest import SHAPE, tiny_multimodal
from tests.support.seeing import SPECIAL, picture, processor, tokenizer

LETTERS = (*ascii_uppercase[:4], *(f"w{i}" for i in range(4, 57)))
"""The first words of the vocabulary are letters."""

Line = dict[str, Any]


def rows(count: int = 6) -> list[Line]:
    """Questions of several lengths about images of two shapes, with two to four choices; the fourth is about none."""
    found = [
        {
            "image": f"images/{index % 3}.png",
            "question": "w4 w5" + " w6" * (index % 2),
            "choices": ["w7", "w8", "w9", "w10"][: 2 + index % 3],
            "answer": index % 2,
            "hint": "",
        }
        for index in range(count)
    ]
    found[3]["image"] = None
    return found


def written(folder: Path, lines: list[Line]) -> Path:
    """`image_choice.jsonl` with its images."""
    (folder / "images").mkdir(exist_ok=True)
    for index, shape in enumerate([(16, 16), (24, 16), (16, 16)]):
        picture(index, *shape).save(folder / "images" / f"{index}.png")
    path = folder / "image_choice.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def model_of(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return tiny_multimodal(family, {"max_position_embeddings": 128})


def always(letter: str) -> PreTrainedModel:
    """A model whose blocks do nothing: behind any word it says the letter, and behind the letter it ends."""
    model = model_of("llava")
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.zeros_(parameter)
    embedding, head, said = model.get_input_embeddings().weight, model.lm_head.weight, LETTERS.index(letter)
    with torch.no_grad():
        embedding.zero_()
        embedding[:, 0] = 1.0
        embedding[said] = 0.0
        embedding[said, 1] = 1.0
        head.zero_()
        head[said, 0] = head[SPECIAL["</s>"], 1] = 1.0
    return model


@pytest.mark.parametrize("family", MULTIMODAL)
@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_harness_gets_the_answers_of_the_library(tmp_path: Path, family: str, batch_size: int) -> None:
    from lm_eval.evaluator import evaluate

    model, own = model_of(family), processor(family, LETTERS)
    records = read_question_file(written(tmp_path, rows()))
    questions = [
        Question(each["question"], "", each["image"] and open_image(tmp_path / each["image"])) for each in records
    ]
    harness = zero_shot._harness(model, own, True, None, tmp_path, {"batch_size": batch_size, "max_length": None})
    task = zero_shot._load({"image_choice": tmp_path / "image_choice.jsonl"}, tmp_path)["image_choice"]
    found = evaluate(lm=harness, task_dict={"tasks": {"image_choice": task}}, bootstrap_iters=0, log_samples=True)
    samples = found["samples"]["image_choice"]
    assert [each["resps"][0][0] for each in samples] == answer(model, own, questions, batch_size=3)
    assert [each["target"] for each in samples] == [each["answer"] for each in records]
    assert [each["arguments"][0][0].removeprefix("<image>") for each in samples] == [each.text for each in questions]


@pytest.mark.parametrize(("letter", "right"), [("A", 3), ("B", 3), ("C", 0)])
def test_the_letter_is_what_counts(tmp_path: Path, letter: str, right: int) -> None:
    written(tmp_path, rows())
    found = zero_shot.run_tasks(always(letter), processor("llava", LETTERS), ["image_choice"], folder=tmp_path)
    assert found["image_choice"] == {
        "acc": right / 6,
        "stderr": pytest.approx((right / 6 * (1 - right / 6) / 5) ** 0.5),
        "n": 6,
        "version": 1.0,
        "truncated": 0,
        "bos_rule": "marks of the chat template",
        "non_finite": 0,
    }


def test_a_limit_takes_the_first_items(tmp_path: Path) -> None:
    written(tmp_path, rows())
    found = zero_shot.run_tasks(always("A"), processor("llava", LETTERS), ["image_choice"], folder=tmp_path, limit=1)
    assert (found["image_choice"]["n"], found["image_choice"]["acc"]) == (1, 1.0)


@pytest.mark.parametrize("family", MULTIMODAL)
def test_a_model_that_sees_runs_tasks_of_text_beside_those_with_images(tmp_path: Path, family: str) -> None:
    written(tmp_path, rows())
    items = [{"context": "w4 w5 w6", "target": "w7"}, {"context": "w8", "target": "w9"}]
    (tmp_path / "last_word.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    model, own = model_of(family), processor(family, LETTERS)
    found = zero_shot.run_tasks(model, own, ["last_word", "image_choice"], folder=tmp_path)
    losses = []
    for item in items:
        ids = [SPECIAL["<s>"], *own.tokenizer.encode(f"{item['context']} {item['target']}", add_special_tokens=False)]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0].double()
        losses.append(-float(logits[-2].log_softmax(-1)[ids[-1]]))
    assert found["last_word"]["perplexity"] == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=1e-5)
    assert found["image_choice"]["n"] == 6


def test_a_model_that_does_not_see_is_refused(tmp_path: Path) -> None:
    written(tmp_path, rows())
    blind = LlamaForCausalLM(LlamaConfig(**SHAPE))
    with pytest.raises(UsageError, match=r"image_choice show images, which this llama with its .* does not see"):
        zero_shot.run_tasks(blind, tokenizer(), ["image_choice"], folder=tmp_path)
    with pytest.raises(UsageError, match=r"show images, which this llava with its .* does not see"):
        zero_shot.run_tasks(model_of("llava"), tokenizer(), ["image_choice"], folder=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": None}, "Line 2 of .*: the answer is 1; expected a text"),
        ({"answer": 9}, "Line 2 of .* has the answer 9"),
        ({"image": "images/9.png"}, "Line 2 of .* is no file"),
        ({"question": "<image> w4"}, "Line 2 of .* has <image> in its question"),
    ],
)
def test_items_that_do_not_fit_are_refused_by_line(tmp_path: Path, change: Line, message: str) -> None:
    first, second = rows(4)[:2]
    written(tmp_path, [first, second | change])
    with pytest.raises(InputError, match=message):
        zero_shot.run_tasks(always("A"), processor("llava", LETTERS), ["image_choice"], folder=tmp_path)


def test_items_without_choices_or_images_are_refused(tmp_path: Path) -> None:
    own, model = processor("llava", LETTERS), always("A")
    first = rows(4)[0]
    written(tmp_path, [first, {"image": None, "question": "w4", "answer": "w5"}])
    with pytest.raises(InputError, match=r"Line 2 of .* has no `choices`"):
        zero_shot.run_tasks(model, own, ["image_choice"], folder=tmp_path)
    written(tmp_path, [first | {"image": None}])
    with pytest.raises(InputError, match="have 0 images, expected at least 1"):
        zero_shot.run_tasks(model, own, ["image_choice"], folder=tmp_path)


def test_a_damaged_image_and_a_broken_model_are_refused(tmp_path: Path) -> None:
    own, model = processor("llava", LETTERS), always("A")
    written(tmp_path, rows())
    broken = always("A")
    nn.init.constant_(broken.lm_head.weight, float("nan"))
    with pytest.raises(NumericalError, match="64 of 64 logits in the answer to 'w4 w5"):
        zero_shot.run_tasks(broken, own, ["image_choice"], folder=tmp_path)
    (tmp_path / "images" / "1.png").write_bytes((tmp_path / "images" / "1.png").read_bytes()[:200])
    with pytest.raises(InputError, match=r"1.png is damaged or truncated"):
        zero_shot.run_tasks(model, own, ["image_choice"], folder=tmp_path)


def test_the_content_of_a_task_with_images_is_its_items_and_its_images(tmp_path: Path) -> None:
    written(tmp_path, rows())
    (tmp_path / "boolq.jsonl").write_text("{}\n")
    images = {f"images/{index}.png": tmp_path / f"images/{index}.png" for index in (0, 1, 2)}
    assert zero_shot.task_files(["boolq", "image_choice"], tmp_path) == {
        "boolq.jsonl": tmp_path / "boolq.jsonl",
        "image_choice.jsonl": tmp_path / "image_choice.jsonl",
        **images,
    }
    assert [task for task in zero_shot.known_tasks() if zero_shot.shows_images(task)] == ["image_choice"]
