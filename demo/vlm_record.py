"""Content of `models/demo-vlm/training.json`: the data, the recipe and the results of the vision-language training.

Everything is measured on the saved bfloat16 weights in float32 arithmetic. An answer is correct if the greedy text equals the expected
one (exact match); each question is asked alone, with the processor's chat template. Two blind yardsticks are reported as well: the same
model on mid-gray images and without an image at all, since what they get right comes from the question. So is the share of the most
frequent answer of each type. The perplexity of docstrings is that of `train.py`, for this model and for the language model it was made
from.
"""

import hashlib
import importlib.metadata
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from demo import corpus, dialogues, packing, scenes, train, vlm
from demo.corpus import Document
from demo.plan import Plan as TextPlan
from demo.record import RECORD
from demo.scenes import CAPTION, Example
from mgaa.checkpoints.output_folder import write_output as output_file

if TYPE_CHECKING:
    from demo.vlm_plan import Plan

QUESTIONS = 1000
CAPTIONS = 200
GRAY = (128, 128, 128)


def answers(
    model: LlavaForConditionalGeneration, reader: LlavaProcessor, asked: Sequence[Example], *, see: str = "image"
) -> list[str]:
    """Greedy answers; `see` is `image`, `blank` (a mid-gray image) or `text` (no image at all)."""
    shown: dict[str, Callable[[Example], Image.Image | None]] = {
        "image": lambda each: each.image,
        "blank": lambda each: Image.new("RGB", each.image.size, GRAY),
        "text": lambda each: None,
    }
    model.eval()
    found = []
    for start in tqdm(range(0, len(asked), 64), desc=f"answering by {see}", leave=False, disable=None):
        part = asked[start : start + 64]
        found += vlm.answer(model, reader, [(shown[see](each), each.question) for each in part])
    model.train()
    return found


def accuracy(model: LlavaForConditionalGeneration, reader: LlavaProcessor, asked: Sequence[Example]) -> float:
    """Share of exact matches."""
    found = answers(model, reader, asked)
    return sum(one == each.answer for one, each in zip(found, asked, strict=True)) / len(asked)


def scores(
    model: LlavaForConditionalGeneration,
    reader: LlavaProcessor,
    asked: Sequence[Example],
    sights: Sequence[str] = ("image", "blank", "text"),
) -> dict[str, dict[str, float | int]]:
    """Exact match overall and by type for each way of seeing, with the share of the most frequent answer."""
    hits = {
        see: [one == each.answer for one, each in zip(answers(model, reader, asked, see=see), asked, strict=True)]
        for see in sights
    }
    kinds = ["overall", *sorted({each.type for each in asked})]
    return {kind: _score(asked, hits, kind) for kind in kinds}


@torch.no_grad()
def caption_perplexity(model: LlavaForConditionalGeneration, reader: LlavaProcessor, asked: Sequence[Example]) -> float:
    """Perplexity of the captions' tokens and their `</s>`, each asked alone."""
    total, count = 0.0, 0
    for start in range(0, len(asked), 50):
        part = [(each.image, [(each.question, each.answer)]) for each in asked[start : start + 50]]
        rows = dialogues.encode(reader, part)
        count += (learned := int(rows.learned.sum()))
        total += float(dialogues.loss(model, rows)) * learned
    return math.exp(total / count)


def text_perplexity(
    model: LlavaForConditionalGeneration, texts: tuple[Sequence[Tensor], Sequence[Tensor]]
) -> dict[str, float]:
    """Perplexity of the docstrings for this model and for the language model it was made from, each with its own tokenizer, as in
    `train.py`.
    """
    own, before = (packing.rows(each, TextPlan().length) for each in texts)
    backbone = LlamaForCausalLM.from_pretrained(vlm.BACKBONE, dtype=torch.float32)
    ours = math.exp(train.evaluate(model, own, what="docstrings"))
    theirs = math.exp(train.evaluate(backbone, before, what="docstrings by models/demo"))
    return {"this_model": round(ours, 3), "models_demo": round(theirs, 3), "change": round(ours / theirs - 1, 4)}


def digest(asked: Sequence[Example]) -> str:
    """Digest of examples: sha256 over their pixels, questions and answers."""
    total = hashlib.sha256()
    for each in asked:
        total.update(each.image.tobytes() + f"\0{each.question}\0{each.answer}\0".encode())
    return total.hexdigest()


def write(
    output: Path,
    plan: "Plan",
    *,
    documents: Mapping[str, Sequence[Document]],
    test_texts: tuple[Sequence[Tensor], Sequence[Tensor]],
    easy: Sequence[Example],
    easy_test: Sequence[Example],
    curves: Mapping[str, list[list[float]]],
    seconds: float,
    before: Mapping[str, Any] | None = None,
) -> None:
    """Measure the saved checkpoint and write `training.json` next to it; `before` is the record of the training that was resumed."""
    model = AutoModelForImageTextToText.from_pretrained(output, dtype=torch.float32)
    reader = AutoProcessor.from_pretrained(output)
    test, captions = scenes.examples("test", QUESTIONS), scenes.examples("test", CAPTIONS, types=[CAPTION])
    results: dict[str, Any] = {"scenes": scores(model, reader, test)}
    if easy_test:
        results["easy_vqa"] = scores(model, reader, easy_test, ["image"])
    results["caption_perplexity"] = round(caption_perplexity(model, reader, captions), 4)
    results["text_perplexity"] = text_perplexity(model, test_texts)
    content = {
        "versions": corpus.versions() | {"pillow": importlib.metadata.version("pillow")},
        "parameters": _parameters(model),
        "scenes": {"version": scenes.version(), "test": {"questions": len(test), "sha256": digest(test)}},
        "easy_vqa": {name: _easy(each) for name, each in (("train", easy), ("test", easy_test))},
        "docstrings": {name: corpus.digest(documents[name]) for name in ("train", "test")},
        **({} if before is None else {"before": {key: before[key] for key in ("plan", "seen", "curves", "seconds")}}),
        "plan": asdict(plan),
        "seen": _consumed(plan),
        "curves": dict(curves),
        "results": results,
        "seconds": round(seconds),
        "device": f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    output_file(output / RECORD, (json.dumps(content, indent=1) + "\n").encode())


def _score(asked: Sequence[Example], hits: Mapping[str, Sequence[bool]], kind: str) -> dict[str, float | int]:
    chosen = [place for place, each in enumerate(asked) if kind in ("overall", each.type)]
    frequent = Counter(asked[place].answer for place in chosen).most_common(1)[0][1]
    shares = {see: round(sum(values[place] for place in chosen) / len(chosen), 4) for see, values in hits.items()}
    return {"questions": len(chosen), **shares, "majority": round(frequent / len(chosen), 4)}


def _easy(questions: Sequence[Example]) -> dict[str, int | str] | None:
    """Record of a part of easy-VQA; None if it was not given."""
    if not questions:
        return None
    images = len({id(each.image) for each in questions})
    return {"questions": len(questions), "images": images, "sha256": digest(questions)}


def _consumed(plan: "Plan") -> dict[str, int]:
    """Images and tokens of text that the training consumed."""
    return {
        "tower_images": plan.tower_steps * plan.tower_batch,
        "images": plan.steps * plan.batch,
        "questions_at_most": plan.steps * plan.batch * plan.turns,
        "text_tokens": sum(map(plan.reads, range(plan.steps))) * plan.text_batch * plan.text_length,
    }


def _parameters(model: LlavaForConditionalGeneration) -> dict[str, int]:
    parts = {
        "vision_tower": model.model.vision_tower,
        "projector": model.model.multi_modal_projector,
        "language_model": model.model.language_model,
    }
    return {name: sum(each.numel() for each in part.parameters()) for name, part in parts.items()}
