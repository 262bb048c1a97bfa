"""Cost of compressing a vision-language model: questions about images, captions and plain text, for uniform ranks, MGAA and LoRAP.

    python benchmarks/vision.py models/demo-vlm scenes                                      # drawn scenes
    python benchmarks/vision.py models/demo-vlm easy_vqa=CALIBRATION.jsonl:TEST.jsonl       # files of image, question and answer

Calibration is on questions with their images (256 of the calibration split, or of the first file), and for MGAA also on the demo's
docstrings alone, as many tokens. All models of a row have the same budget. Accuracies are compared on the same questions by the paired
bootstrap, perplexities of text are those of the demo's test split. Prints one Markdown table.
"""

import argparse
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mgaa
from demo import corpus, scenes
from mgaa.evaluation.answering import answer
from mgaa.evaluation.perplexity import perplexity
from mgaa.evaluation.scoring import caption_losses, is_match, majority_accuracy
from mgaa.inputs.prompts import Prompts, Question, encode
from mgaa.inputs.tokens import pack, windows
from mgaa.models.processors import tokenizer_of
from tasks.data import questions
from tasks.evaluation.bootstrap import Bootstrap

UNIFORM: dict[str, Any] = {"ratios": "uniform", "ranks": "uniform"}
LENGTH = 256
MODELS = ("uniform", "MGAA", "LoRAP", "MGAA on text")


@dataclass(frozen=True)
class Case:
    """Calibration data of a model, and the questions for it."""

    calibration: list[Question]
    asked: list[Question]
    captions: list[Question]


@dataclass(frozen=True)
class Measured:
    """Measurements of one model: its correct answers, the losses of captions, and the negative log-likelihood of text."""

    right: list[float]
    captions: float | None
    nll: float


def case_of(given: str, samples: int, count: int) -> Case:
    """Make a case from the demo's scenes, or from the questions of two files."""
    if given == "scenes":
        types = (*scenes.TYPES, scenes.CAPTION)
        drawn = {
            split: scenes.examples(split, size, 0, types) for split, size in (("calibration", samples), ("test", count))
        }
        asked = {
            split: [(e.type, Question(e.question, e.answer, e.image)) for e in each] for split, each in drawn.items()
        }
    else:
        files = dict(zip(("calibration", "test"), map(Path, given.partition("=")[2].split(":")), strict=True))
        sizes = {"calibration": samples, "test": count}
        asked = {split: list(read(path, sizes[split])) for split, path in files.items()}
    told = [question for kind, question in asked["test"] if kind == questions.CAPTION]
    rest = [question for kind, question in asked["test"] if kind != questions.CAPTION]
    return Case([question for _, question in asked["calibration"]], rest, told)


def read(path: Path, count: int) -> Iterator[tuple[str, Question]]:
    """Read the first questions of a file."""
    for record in questions.read_question_file(path)[:count]:
        image = None if record["image"] is None else questions.open_image(path.parent / record["image"])
        yield record["type"], Question(record["question"], record["answer"], image)


def measured(model: Any, processor: Any, case: Case, text: torch.Tensor) -> Measured:
    """Measure the answers of a model, and its losses on text."""
    said = answer(model, processor, case.asked, batch_size=64, max_new_tokens=12)
    right = [float(is_match(given, each.answer)) for given, each in zip(said, case.asked, strict=True)]
    captions = caption_losses(model, processor, case.captions, batch_size=64).perplexity if case.captions else None
    return Measured(right, captions, perplexity(model, text, length=LENGTH, batch_size=16).nll)


def compressed(
    dense: Any, seen: Prompts, read_: torch.Tensor, targets: Sequence[float]
) -> Iterator[tuple[float, dict[str, Any]]]:
    """Models of every compression."""
    ways: Mapping[str, tuple[Any, dict[str, Any]]] = {
        "uniform": (seen, UNIFORM),
        "MGAA": (seen, {}),
        "MGAA on text": (read_, {}),
    }
    sweeps = {name: mgaa.sweep(copy.deepcopy(dense), given, targets, **how) for name, (given, how) in ways.items()}
    for target in targets:
        models = {name: next(each)[0] for name, each in sweeps.items()}
        models["LoRAP"] = copy.deepcopy(dense)
        mgaa.compress_(models["LoRAP"], seen, compression=target, **mgaa.LORAP)
        yield target, models


def row(target: float, dense: Measured, found: Mapping[str, Measured]) -> str:
    """Line of the table."""
    over = Bootstrap([1] * len(dense.right))
    cells = []
    for name in MODELS:
        each = found[name]
        difference = over.difference(each.right, found["uniform"].right)
        beside = "" if name == "uniform" else f" ({100 * difference.low:+.1f} to {100 * difference.high:+.1f})"
        cells.append(f"{100 * sum(each.right) / len(each.right):.1f}{beside}")
    if dense.captions is not None:
        cells += [f"{found[name].captions:.3f}" for name in MODELS]
    cells += [f"{math.exp(found[name].nll):.2f}" for name in MODELS]
    return f"| {target} | {' | '.join(cells)} |"


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python benchmarks/vision.py", description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="folder of a vision-language model")
    parser.add_argument("case", help="scenes, or name=calibration.jsonl:test.jsonl")
    parser.add_argument("--compressions", type=float, nargs="+", default=[0.2, 0.3, 0.4, 0.5, 0.6])
    parser.add_argument("--samples", type=int, default=256, help="calibration questions (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=1200, help="evaluation questions (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=128, help="evaluation windows of text (default: %(default)s)")
    given = parser.parse_args()
    dense, processor = mgaa.load(given.model)
    case = case_of(given.case, given.samples, given.questions)
    seen, _ = encode(case.calibration, processor, dense.config).by_length()  # type: ignore[arg-type]
    held_out = corpus.held_out_documents()
    ids = {
        name: pack([each.text for each in held_out[name]], tokenizer_of(processor)).ids
        for name in ("calibration", "test")
    }
    read_ = windows(ids["calibration"], LENGTH, samples=max(32, seen.tokens // LENGTH))
    text = windows(ids["test"], LENGTH, samples=given.windows).flatten()
    whole = measured(dense, processor, case, text)
    share = 100 * majority_accuracy([each.answer for each in case.asked])
    captions = "" if whole.captions is None else f" captions {whole.captions:.3f},"
    print(
        f"dense: {100 * sum(whole.right) / len(whole.right):.1f} % of {len(case.asked)} questions, always the most frequent answer "
        f"{share:.1f} %;{captions} text {math.exp(whole.nll):.2f}\n"
    )
    heads = [f"accuracy, {name}" for name in MODELS]
    heads += [] if whole.captions is None else [f"captions, {name}" for name in MODELS]
    heads += [f"text, {name}" for name in MODELS]
    print(f"| compression | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}", flush=True)
    for target, models in compressed(dense, seen, read_, given.compressions):
        found = {name: measured(model, processor, case, text) for name, model in models.items()}
        print(row(target, whole, found), flush=True)


if __name__ == "__main__":
    main()
