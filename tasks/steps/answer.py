"""Step 10c, answer: the answers of a vision-language model to questions about images, and how well it predicts captions, with the
evaluation card.

Questions of the type `caption` are scored by the loss of their answers, all others by exact match of what the model generates
(`mgaa.evaluation.answering`). As in tasks/steps/measure_perplexity.py the model is read back from the files that a user would load. Every
accuracy comes with that of always giving the most frequent answer, which a model reaches without looking at the images.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgaa.errors import UsageError
from tasks.artifacts.files import ANSWERS, write_table
from tasks.artifacts.models import load_artifact
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import digest
from tasks.cache.step import step
from tasks.data.questions import CAPTION, questions_of, records_of

if TYPE_CHECKING:
    from mgaa.evaluation.scoring import CaptionLosses

Record = Mapping[str, Any]


@step(kind="answers")
def answer(
    out: Path,
    store: Store,
    model: Artifact,
    prompts: Artifact,
    *,
    section: str,
    batch_size: int,
    max_new_tokens: int,
    device: str,
) -> None:
    """Ask a backbone or a checkpoint the questions of a section.

    Args:
        model: artifact `backbone`, `model` or `checkpoint`.
        prompts: artifact `prompts` (tasks/data/questions.py).
        batch_size: prompts per pass through the model, at most.
        max_new_tokens: tokens of an answer, at most.

    Raises:
        UsageError: the model has no processor with a chat template.
        InputError: no such section, or a prompt that does not fit the model.
        NumericalError: a logit or a loss is not finite.
    """
    from mgaa.evaluation import answering, scoring

    loaded, processor = load_artifact(store, model, device)
    template = _template(processor)
    records, questions = records_of(store, prompts, section), questions_of(store, prompts, section)
    asked = [index for index, record in enumerate(records) if record["type"] != CAPTION]
    told = [question for question, record in zip(questions, records, strict=True) if record["type"] == CAPTION]
    given = [questions[index] for index in asked]
    answers = answering.answer(loaded, processor, given, batch_size=batch_size, max_new_tokens=max_new_tokens)
    captions = scoring.caption_losses(loaded, processor, told, batch_size=batch_size) if told else None
    shown = answering.image_tokens(loaded, processor, questions)
    card = {
        "prompt_rule": answering.PROMPT,
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "max_new_tokens": max_new_tokens,
        "decoding": "greedy",
        "normalisation": scoring.NORMALISATION,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "section": section,
        "data_digest": _data_digest(store, prompts, section),
        "image_tokens": {"min": min(shown), "max": max(shown)},
        "transformers": importlib.metadata.version("transformers"),
        "non_finite": 0,
    }
    table = score_answers([records[index] for index in asked], answers) | _of_captions(captions)
    write_table(out / ANSWERS, table | {"card": card})


def score_answers(records: Sequence[Record], answers: Sequence[str]) -> dict[str, Any]:
    """Accuracies in all and by type, each with its majority baseline, and every answer; numbers are None where there is no question."""
    from mgaa.evaluation.scoring import Accuracy, is_match, majority_accuracy

    hits = [is_match(said, record["answer"]) for said, record in zip(answers, records, strict=True)]

    def summary(accuracy: Accuracy, expected: Sequence[str]) -> dict[str, Any]:
        return {
            "accuracy": accuracy.accuracy,
            "stderr": accuracy.stderr,
            "n": accuracy.count,
            "majority": majority_accuracy(expected),
        }

    whole = summary(Accuracy.of(hits), [record["answer"] for record in records]) if hits else None
    types = Accuracy.by_type(hits, [record["type"] for record in records])
    return {
        **(whole or {"accuracy": None, "stderr": None, "n": 0, "majority": None}),
        "types": {
            kind: summary(accuracy, [record["answer"] for record in records if record["type"] == kind])
            for kind, accuracy in types.items()
        },
        "answers": [
            {
                "question": record["question"],
                "expected": record["answer"],
                "answer": said,
                "type": record["type"],
                "image": None if record["image"] is None else Path(record["image"]).name,
                "correct": hit,
            }
            for record, said, hit in zip(records, answers, hits, strict=True)
        ],
    }


def _of_captions(found: "CaptionLosses | None") -> dict[str, Any]:
    if found is None:
        return {
            "caption_perplexity": None,
            "caption_perplexity_stderr": None,
            "captions": 0,
            "caption_losses": None,
            "caption_counts": None,
        }
    error = found.standard_error
    return {
        "caption_perplexity": found.perplexity,
        "caption_perplexity_stderr": None if error is None else found.perplexity * error,
        "captions": len(found.losses),
        "caption_losses": found.losses,
        "caption_counts": found.counts,
    }


def _template(processor: Any) -> str:
    """The chat template as text; some processors have several by name."""
    from transformers import ProcessorMixin

    if not isinstance(processor, ProcessorMixin) or processor.chat_template is None:
        raise UsageError(
            "the model has no processor with a chat template, so it cannot be asked about images: give a model that sees, with its own "
            "processor_config.json (or preprocessor_config.json) and chat_template.jinja in its folder"
        )
    template = processor.chat_template
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def _data_digest(store: Store, prompts: Artifact, section: str) -> str:
    """The identity of a section: sha256 over those of its files."""
    files = store.manifest(prompts)["files"]
    return digest({name: file["sha256"] for name, file in files.items() if name.startswith(f"{section}/")})
