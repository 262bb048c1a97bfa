"""Scores of a vision-language model's answers: exact match, and the loss of given answers.

**Exact match**: an answer is right where it equals the expected one after both are normalised (`normalised`). Lower case, final
punctuation and articles are treated as in the evaluation code of VQA (Antol et al. 2015, https://visualqa.org/evaluation.html and
https://github.com/GT-Vision-Lab/VQA, `vqaEvaluation/vqaEval.py`). The rest of that code is left out: number words do not become digits,
contractions get no apostrophe, punctuation inside an answer stays, and there is one expected answer, not ten of which three must agree.
An article that is all of an answer stays: the letter of a choice may be `A`.

**Caption loss**: the answer is given (teacher forcing) and each of its tokens is scored, including the end mark where the chat template
has one. Log-softmax in float32 (float64 for a float64 model), sums in float64, mean and standard error as in
`mgaa.evaluation.perplexity`, with answers as the groups.

Legend: b prompts of a batch, n tokens scored at most, v vocabulary.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mgaa.errors import InputError, NumericalError
from mgaa.evaluation.perplexity import cross_entropy, eval_mode, mean_loss
from mgaa.evaluation.prompt_batches import batches, check_positive, chunks, image_token_errors, move_to_model
from mgaa.inputs.prompts import Prompts, Question, encode
from mgaa.inputs.readers import coerce_arguments, to_run
from mgaa.inputs.readers import processor as processor_of
from mgaa.inputs.values import integer
from mgaa.models.model_inputs import IDS
from mgaa.models.processors import Processor

_ARTICLES = frozenset({"a", "an", "the"})

_END = " .!?,;:"

NORMALISATION = (
    "Unicode NFKC, lower case, without surrounding whitespace, final .!?,;: and the articles a, an, the (an answer that is nothing "
    "else stays), inner whitespace as one space"
)
"""Rule of `normalised`, for an evaluation card."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of some answers."""

    correct: int
    count: int

    @staticmethod
    def of(hits: Sequence[bool]) -> "Accuracy":
        """Count the correct answers.

        Raises:
            InputError: there are no answers.
        """
        if not hits:
            raise InputError("there are 0 answers, expected at least one: give more questions")
        return Accuracy(sum(hits), len(hits))

    @staticmethod
    def by_type(hits: Sequence[bool], types: Sequence[str]) -> dict[str, "Accuracy"]:
        """Compute the accuracy for the questions of each type, in alphabetical order."""
        return {
            kind: Accuracy.of([hit for hit, label in zip(hits, types, strict=True) if label == kind])
            for kind in sorted(set(types))
        }

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return self.correct / self.count

    @property
    def stderr(self) -> float | None:
        """Binomial standard error of that share, `sqrt(p (1 - p) / (n - 1))`; None for a single answer."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (self.count - 1)) if self.count > 1 else None


@dataclass(frozen=True)
class CaptionLosses:
    """Losses of given answers under a model."""

    losses: tuple[float, ...]
    """Sum over the tokens of each answer, in nats, in the order of the questions."""
    counts: tuple[int, ...]
    """Tokens of each answer."""
    nll: float
    """Mean negative log-likelihood of a token, in nats."""
    standard_error: float | None
    """Standard error of `nll`, in nats; None for a single answer. That of the perplexity is `perplexity` times this."""

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.exp(self.nll)


def normalised(text: str) -> str:
    """Normalise an answer for exact match (module docstring)."""
    lowered = unicodedata.normalize("NFKC", text).lower().strip()
    words = (lowered.rstrip(_END) or lowered).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def is_match(answer: str, expected: str) -> bool:
    """Return whether an answer equals the expected one after both are normalised."""
    return normalised(answer) == normalised(expected)


def majority_accuracy(expected: Sequence[str]) -> float:
    """Return the accuracy of always giving the most frequent expected answer.

    Raises:
        InputError: there are no answers.
    """
    if not expected:
        raise InputError("there are 0 expected answers, expected at least one: give more questions")
    return max(Counter(map(normalised, expected)).values()) / len(expected)


@coerce_arguments(model=to_run, processor=processor_of, batch_size=integer)
@torch.inference_mode()
def caption_losses(
    model: PreTrainedModel, processor: Processor, questions: Sequence[Question], *, batch_size: int = 16
) -> CaptionLosses:
    """Compute the loss of the answer of each question after its prompt.

    Args:
        model: used in eval mode and left in the mode it came in.
        processor: the model's own, with a chat template.
        batch_size: prompts per pass through the model, at most. The result depends on it by rounding only.

    Raises:
        UsageError: a batch size below one, or a processor without a chat template.
        InputError: no question, a prompt that does not fit the model, or an answer that the chat template leaves out.
        NumericalError: a loss is not finite (the message names the question).
    """
    check_positive(batch_size=batch_size)
    if not questions:
        raise InputError("there are 0 questions to score, expected at least one: give more questions")
    losses: list[float] = []
    counts: list[int] = []
    with (
        eval_mode(model),
        tqdm(total=len(questions), desc="measuring caption loss", unit=" questions", disable=None) as bar,
    ):
        for chunk in chunks(questions, batch_size):
            prompts, order = encode(chunk, processor, model.config).by_length()
            sums = [0.0] * len(chunk)
            for batch in batches(prompts, batch_size):
                asked = [chunk[order[index]] for index in batch]
                for index, loss in zip(batch, _losses(model, prompts, batch, asked), strict=True):
                    sums[order[index]] = loss
                bar.update(len(batch))
            losses += sums
            counts += [count for _, count in sorted(zip(order, prompts.answers, strict=True))]
    return CaptionLosses(tuple(losses), tuple(counts), *mean_loss(losses, counts))


def _losses(model: PreTrainedModel, prompts: Prompts, batch: range, asked: Sequence[Question]) -> list[float]:
    """Return the summed loss of each answer, from the logits at its tokens (one before each) and one extra at the end."""
    counts = [prompts.answers[index] for index in batch]
    for question, count in zip(asked, counts, strict=True):
        if count == 0:
            raise InputError(
                f"the prompt of the question {question.text!r} has 0 tokens of its answer {question.answer!r}, expected at least 1: the "
                "chat template leaves the assistant's turn out; take the model's own template"
            )
    scored = max(counts)
    inputs = move_to_model(model, prompts.batch(batch))
    with image_token_errors(inputs):
        logits: Float[Tensor, "b n v"] = model(**inputs, use_cache=False, logits_to_keep=scored + 1).logits
    losses = cross_entropy(logits[:, :-1], inputs[IDS][:, -scored:])
    sums = []
    for row, question, count in zip(losses, asked, counts, strict=True):
        own = row[-count:]
        if wrong := count - int(own.isfinite().sum()):
            raise NumericalError(
                f"{wrong} of the {count} losses in the answer to {question.text!r} are not finite, expected 0: check the weights, or load "
                "the model in bfloat16 or float32 (`backbone.dtype`)."
            )
        sums.append(float(own.double().sum()))
    return sums
