"""A model that sees is asked from its files, and the record says how; without a processor it is refused."""

import hashlib
import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from mgaa.checkpoints.load import load
from mgaa.checkpoints.save import apply_factors, save
from mgaa.errors import InputError, UsageError
from mgaa.evaluation import answering, scoring
from mgaa.models.architectures import matrices_of
from mgaa.models.entries import MULTIMODAL
from tasks.artifacts.files import ANSWERS, read_table
from tasks.cache.artifact import Artifact, Store
from tasks.data.questions import questions_of
from tasks.steps.answer import answer, score_answers
from tasks.steps.load_backbone import architecture_digest, identify, load_model
from tests.mgaa.conftest import SHAPE, svd_factors, tiny_multimodal
from tests.support.seeing import picture, processor

Line = dict[str, Any]
OPTIONS: dict[str, Any] = {"section": "evaluation", "batch_size": 4, "max_new_tokens": 3, "device": "cpu"}
SHOWN = "images/0.png"
ASKED: list[Line] = [
    {"image": SHOWN, "question": "w1 w2", "answer": "W3.", "type": "other"},
    {"image": "images/1.png", "question": "w4", "answer": "yes", "type": "yes/no"},
    {"image": SHOWN, "question": "w5 w6", "answer": "no", "type": "yes/no"},
    {"image": None, "question": "w7", "answer": "No", "type": "yes/no"},
]
TOLD: list[Line] = [
    {"image": SHOWN, "question": "w8", "answer": "w9 w10", "type": "caption"},
    {"image": "images/1.png", "question": "w8", "answer": "w11 w12 w13", "type": "caption"},
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def prompts(store: Store, lines: Sequence[Line], section: str = "evaluation") -> Artifact:
    with store.draft_folder("prompts") as folder:
        (folder / section / "images").mkdir(parents=True)
        for index, shape in enumerate([(16, 16), (24, 16)]):
            picture(index, *shape).save(folder / section / "images" / f"{index}.png")
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / section / "questions.jsonl").write_text(text)
        return store.seal(folder, "prompts", {})


def saved(folder: Path, family: str) -> str:
    torch.manual_seed(0)
    tiny_multimodal(family, {}).save_pretrained(folder)
    processor(family).save_pretrained(folder)
    return str(folder)


def referred(store: Store, source: str) -> Artifact:
    """The artifact `model` of a folder."""
    found = {"files": identify(source, None), "architecture": architecture_digest(source, None)}
    return load_model.fn(store, source=source, revision=None, dtype="auto", **found)


@pytest.mark.parametrize(
    "family", [family for family in MULTIMODAL if family != "mistral3" or find_spec("torchvision")]
)
def test_the_record_is_what_the_library_says_of_the_files(
    store: Store,
    tmp_path: Path,
    family: str,
) -> None:
    source, given = saved(tmp_path / "model", family), prompts(store, [*ASKED[:2], *TOLD, *ASKED[2:]])
    found = read_table(store, answer.fn(store, referred(store, source), given, **OPTIONS), ANSWERS)
    model, own = load(source, device="cpu")
    questions = questions_of(store, given, "evaluation")
    asked, told = [*questions[:2], *questions[4:]], questions[2:4]
    said = answering.answer(model, own, asked, max_new_tokens=3)
    assert [each["answer"] for each in found["answers"]] == said
    assert [each["image"] for each in found["answers"]] == ["0.png", "1.png", "0.png", None]
    losses = scoring.caption_losses(model, own, told)
    assert found["caption_losses"] == pytest.approx(losses.losses, rel=1e-6)
    assert found["caption_counts"] == [3, 4]
    assert found["caption_perplexity"] == pytest.approx(losses.perplexity, rel=1e-6)
    error = losses.perplexity * (losses.standard_error or math.nan)
    assert found["caption_perplexity_stderr"] == pytest.approx(error, rel=1e-5)
    assert (found["n"], found["captions"]) == (4, 2)
    assert found["majority"] == 0.5
    assert {kind: part["n"] for kind, part in found["types"].items()} == {"other": 1, "yes/no": 3}


def test_the_card_says_how_it_was_measured(store: Store, tmp_path: Path) -> None:
    source = saved(tmp_path / "model", "llava")
    model = referred(store, source)
    card = read_table(store, answer.fn(store, model, prompts(store, ASKED), **OPTIONS), ANSWERS)["card"]
    template = (tmp_path / "model" / "chat_template.jinja").read_text()
    assert card["chat_template_sha256"] == hashlib.sha256(template.encode()).hexdigest()
    assert card["image_tokens"] == {"min": 0, "max": 16}
    assert (card["decoding"], card["max_new_tokens"], card["dtype"]) == ("greedy", 3, "float32")
    assert (card["transformers"], card["non_finite"], card["section"]) == (transformers.__version__, 0, "evaluation")
    assert "lower case" in card["normalisation"]
    assert "chat template" in card["prompt_rule"]
    again = read_table(store, answer.fn(store, model, prompts(store, ASKED[:3]), **OPTIONS), ANSWERS)["card"]
    assert again["data_digest"] != card["data_digest"]
    assert {**again, "data_digest": 0, "image_tokens": 0} == {**card, "data_digest": 0, "image_tokens": 0}


def test_a_checkpoint_is_asked_too(
    store: Store,
) -> None:
    compressed = tiny_multimodal("llava", {})
    linears = {matrix.name: compressed.get_submodule(matrix.name) for matrix in matrices_of(compressed)}
    apply_factors(compressed, {name: svd_factors(linear, 0.5, bias=False) for name, linear in linears.items()})
    with store.draft_folder("checkpoint") as folder:
        save(compressed, processor("llava"), folder / "files")
        for path in [*(folder / "files").iterdir()]:
            path.rename(folder / path.name)
        (folder / "files").rmdir()
        checkpoint = store.seal(folder, "checkpoint", {})
    found = read_table(store, answer.fn(store, checkpoint, prompts(store, ASKED), **OPTIONS), ANSWERS)
    assert len(found["answers"]) == 4


def test_parts_that_are_absent_are_null(store: Store, tmp_path: Path) -> None:
    model = referred(store, saved(tmp_path / "model", "llava"))
    found = read_table(store, answer.fn(store, model, prompts(store, TOLD[:1]), **OPTIONS), ANSWERS)
    assert (found["accuracy"], found["stderr"], found["majority"], found["n"]) == (None, None, None, 0)
    assert (found["types"], found["answers"]) == ({}, [])
    assert (found["captions"], found["caption_perplexity_stderr"]) == (1, None)
    found = read_table(store, answer.fn(store, model, prompts(store, ASKED[:1]), **OPTIONS), ANSWERS)
    assert (found["n"], found["stderr"]) == (1, None)
    assert found["captions"] == 0
    assert all(found[f"caption_{name}"] is None for name in ("perplexity", "perplexity_stderr", "losses", "counts"))


def test_a_model_without_a_processor_is_refused(store: Store, tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path / "model")
    processor("llava").tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="no processor with a chat template, so it cannot be asked about images"):
        answer.fn(store, referred(store, str(tmp_path / "model")), prompts(store, ASKED), **OPTIONS)


def test_a_section_that_is_not_there_is_refused(store: Store, tmp_path: Path) -> None:
    model = referred(store, saved(tmp_path / "model", "llava"))
    with pytest.raises(InputError, match="no section 'evaluation'; there is: validation"):
        answer.fn(store, model, prompts(store, ASKED, "validation"), **OPTIONS)


def test_answers_are_scored_in_all_and_by_type() -> None:
    found = score_answers(ASKED, ["w3", "Yes!", "yes", "no."])
    assert (found["accuracy"], found["n"], found["majority"]) == (0.75, 4, 0.5)
    assert found["stderr"] == pytest.approx(0.25)
    yes_no = found["types"]["yes/no"]
    assert (yes_no["accuracy"], yes_no["majority"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert found["types"]["other"] == {"accuracy": 1.0, "stderr": None, "n": 1, "majority": 1.0}
    assert [each["correct"] for each in found["answers"]] == [True, True, False, True]
    assert found["answers"][0] == {
        "question": "w1 w2",
        "expected": "W3.",
        "answer": "w3",
        "type": "other",
        "image": "0.png",
        "correct": True,
    }
