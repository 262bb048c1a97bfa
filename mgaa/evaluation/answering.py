"""What a model that sees answers: greedy generation, and the loss of given answers.

Prompts of one shape go through the model together, so nothing is padded: an answer is the one that the model gives to its question alone,
up to the rounding of kernels, which may depend on how many go together. Generation takes the most likely token, always: of the model's
generation config only the special tokens are used, because sampling settings and penalties of repetition belong to a chat, not to a
measurement. A logit that is not finite is an error: such a model would still say something. An answer ends before the first end mark of
the model or of its tokenizer, or after `max_new_tokens`.

Exact match: an answer is right where it equals the expected one after both are normalised (`normalised`). Lower case, the end of a
sentence and articles are treated as in the evaluation code of VQA (Antol et al. 2015, https://visualqa.org/evaluation.html and
https://github.com/GT-Vision-Lab/VQA, `vqaEvaluation/vqaEval.py`). What that does beside is not done here: number words do not become
digits, contractions get no apostrophe, punctuation inside an answer stays, and there is one expected answer, not ten of which three must
agree. An article that is all of an answer stays: the letter of a choice may be `A`.

Caption loss: the answer is given (teacher forcing) and each of its tokens is scored, the mark that ends it included, where the chat
template has one. Log-softmax in float32 (float64 for a float64 model), sums in float64, mean and standard error as in
`mgaa.evaluation.perplexity`, with answers as the groups.

Legend: b prompts of a batch, n tokens that are scored at most, v vocabulary.
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.evaluation.perplexity import cross_entropy, evaluating, mean_loss
from mgaa.inputs.prompts import Prompts, Question, encode
from mgaa.inputs.readers import accepting, to_run
from mgaa.inputs.readers import processor as processor_of
from mgaa.inputs.values import whole
from mgaa.models.model_inputs import IDS, Inputs
from mgaa.models.processors import Processor, tokenizer_of

_AT_ONCE = 256
"""Questions whose images are held as pixels at once; batches are made among them."""

_ARTICLES = frozenset({"a", "an", "the"})
_END = " .!?,;:"

NORMALISATION = (
    "Unicode NFKC, lower case, without surrounding whitespace, final .!?,;: and the articles a, an, the (an answer that is nothing "
    "else stays), inner whitespace as one space"
)
"""What `normalised` does, for an evaluation card."""

PROMPT = (
    "the processor's chat template around one turn of a user, the image before the question, with the generation prompt"
)
"""How a question becomes a prompt (`mgaa.inputs.prompts`), for an evaluation card."""


@dataclass(frozen=True)
class Accuracy:
    """How many of some answers are right."""

    correct: int
    count: int

    @staticmethod
    def of(hits: Sequence[bool]) -> "Accuracy":
        """Whether each answer is right, counted.

        Raises:
            InputError: there is none.
        """
        if not hits:
            raise InputError("there are 0 answers, expected at least one: give more questions")
        return Accuracy(sum(hits), len(hits))

    @staticmethod
    def by_type(hits: Sequence[bool], types: Sequence[str]) -> dict[str, "Accuracy"]:
        """The same of the questions of each type, in alphabetical order."""
        return {
            kind: Accuracy.of([hit for hit, each in zip(hits, types, strict=True) if each == kind])
            for kind in sorted(set(types))
        }

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return self.correct / self.count

    @property
    def stderr(self) -> float | None:
        """The binomial standard error of that share, `sqrt(p (1 - p) / (n - 1))`; None for a single answer."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / (self.count - 1)) if self.count > 1 else None


@dataclass(frozen=True)
class CaptionLosses:
    """How well a model predicts given answers."""

    losses: tuple[float, ...]
    """Of each answer in the order of the questions: the sum over its tokens, in nats."""
    counts: tuple[int, ...]
    """Tokens of each answer."""
    nll: float
    """Mean negative log-likelihood of a token, in nats."""
    standard_error: float | None
    """Of `nll`, in nats; None for a single answer. That of the perplexity is `perplexity` times this."""

    @property
    def perplexity(self) -> float:
        """exp(nll)."""
        return math.exp(self.nll)


@accepting(model=to_run, processor=processor_of, batch_size=whole, max_new_tokens=whole)
@torch.inference_mode()
def answer(
    model: PreTrainedModel,
    processor: Processor,
    questions: Sequence[Question],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 16,
) -> list[str]:
    """What the model answers, greedily, in the order of the questions; their own answers are not looked at.

    Args:
        model: used in eval mode and left in the mode it came in.
        processor: the model's own, with a chat template.
        batch_size: prompts per pass through the model, at most.
        max_new_tokens: tokens of an answer, at most.

    Returns:
        Texts without special tokens and surrounding whitespace.

    Raises:
        UsageError: a number below one, or a processor without a chat template.
        InputError: a prompt that does not fit the model, alone or with its answer.
        NumericalError: a logit is not finite (the message names the question).
    """
    _check(batch_size=batch_size, max_new_tokens=max_new_tokens)
    tokenizer = tokenizer_of(processor)
    ends = end_marks(model, tokenizer)
    found: list[str] = []
    with (
        evaluating(model),
        greedy(model, ends, max_new_tokens),
        tqdm(total=len(questions), desc="answering questions", unit=" questions", disable=None) as bar,
    ):
        for chunk in _chunks(questions, batch_size):
            prompts, order = encode(chunk, processor, model.config, answered=False).by_length()
            _check_room(model, prompts.lengths[-1], max_new_tokens)
            answers = [""] * len(chunk)
            for batch in _batches(prompts, batch_size):
                asked = [chunk[order[index]].text for index in batch]
                rows = _generated(model, prompts.batch(batch), asked)
                for index, row in zip(batch, rows, strict=True):
                    text = tokenizer.decode(before_end(row, ends), skip_special_tokens=True)
                    answers[order[index]] = text.strip()
                bar.update(len(batch))
            found += answers
    return found


@accepting(model=to_run, processor=processor_of, batch_size=whole)
@torch.inference_mode()
def caption_losses(
    model: PreTrainedModel, processor: Processor, questions: Sequence[Question], *, batch_size: int = 16
) -> CaptionLosses:
    """The loss of the answer of each question after its prompt.

    Args:
        model: used in eval mode and left in the mode it came in.
        processor: the model's own, with a chat template.
        batch_size: prompts per pass through the model, at most. The result depends on it by rounding only.

    Raises:
        UsageError: a batch size below one, or a processor without a chat template.
        InputError: no question, a prompt that does not fit the model, or an answer that the chat template leaves out.
        NumericalError: a loss is not finite (the message names the question).
    """
    _check(batch_size=batch_size)
    if not questions:
        raise InputError("there are 0 questions to take the loss of, expected at least one: give more questions")
    losses: list[float] = []
    counts: list[int] = []
    with (
        evaluating(model),
        tqdm(total=len(questions), desc="measuring caption loss", unit=" questions", disable=None) as bar,
    ):
        for chunk in _chunks(questions, batch_size):
            prompts, order = encode(chunk, processor, model.config).by_length()
            sums = [0.0] * len(chunk)
            for batch in _batches(prompts, batch_size):
                asked = [chunk[order[index]] for index in batch]
                for index, loss in zip(batch, _losses(model, prompts, batch, asked), strict=True):
                    sums[order[index]] = loss
                bar.update(len(batch))
            losses += sums
            counts += [count for _, count in sorted(zip(order, prompts.answers, strict=True))]
    return CaptionLosses(tuple(losses), tuple(counts), *mean_loss(losses, counts))


def image_tokens(model: PreTrainedModel, processor: Processor, questions: Sequence[Question]) -> list[int]:
    """How many tokens of each prompt stand for its image; an image that several questions share is looked at once.

    Raises:
        UsageError, InputError: as `answer`.
    """
    known: dict[int, int] = {}
    for question in questions:
        if id(question.image) not in known:
            known[id(question.image)] = encode([question], processor, model.config, answered=False).image_tokens
    return [known[id(question.image)] for question in questions]


def normalised(text: str) -> str:
    """An answer as exact match compares it; see the top of this file."""
    lowered = unicodedata.normalize("NFKC", text).lower().strip()
    words = (lowered.rstrip(_END) or lowered).split()
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def is_match(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, after both are normalised."""
    return normalised(answer) == normalised(expected)


def majority(expected: Sequence[str]) -> float:
    """The accuracy of always giving the most frequent expected answer.

    Raises:
        InputError: there is none.
    """
    if not expected:
        raise InputError("there are 0 expected answers, expected at least one: give more questions")
    return max(Counter(map(normalised, expected)).values()) / len(expected)


def _check(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"{name} is {number}, expected at least 1")


def _check_room(model: PreTrainedModel, longest: int, max_new_tokens: int) -> None:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and longest + max_new_tokens > positions:
        raise InputError(
            f"the longest prompt has {longest} tokens, which with {max_new_tokens} of an answer (max_new_tokens) are more than the model's "
            f"{positions} positions: allow fewer, leave the question out, or give smaller images"
        )


def _chunks(questions: Sequence[Question], batch_size: int) -> Iterator[Sequence[Question]]:
    size = max(_AT_ONCE, batch_size)
    for start in range(0, len(questions), size):
        yield questions[start : start + size]


def _batches(prompts: Prompts, size: int) -> list[range]:
    """Consecutive prompts of one shape, at most `size` together."""
    alike = prompts.alike([range(len(prompts))])
    return [each[start : start + size] for each in alike for start in range(0, len(each), size)]


def end_marks(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """The ids that end an answer; none where neither model nor tokenizer has one."""
    own = model.generation_config.eos_token_id
    given = own if isinstance(own, list) else [own]
    return sorted({mark for mark in (*given, tokenizer.eos_token_id) if mark is not None})


@contextmanager
def greedy(model: PreTrainedModel, ends: list[int], max_new_tokens: int) -> Iterator[None]:
    """The model generates by the most likely token inside this block, and as its config says behind it."""
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,  # what follows a mark is not looked at, and without one nothing is padded
    )
    try:
        yield
    finally:
        model.generation_config = own


class FiniteLogits(LogitsProcessor):  # type: ignore[misc]  # transformers is not followed by types
    """Raises a `NumericalError` where a logit is not finite, naming the prompt; changes nothing."""

    def __init__(self, asked: Sequence[str]) -> None:
        self.asked = asked

    def __call__(self, input_ids: Int[Tensor, "b n"], scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """The logits as they are."""
        finite = scores.isfinite()
        if not bool(finite.all()):
            row, wrong = next((row, int((~each).sum())) for row, each in enumerate(finite) if not bool(each.all()))
            raise NumericalError(
                f"{wrong} of {scores.shape[1]} logits in the answer to {self.asked[row]!r} are not finite, expected 0: check the weights, "
                "or load the model in bfloat16 or float32 (`backbone.dtype`)."
            )
        return scores


def _generated(model: PreTrainedModel, inputs: Inputs, asked: Sequence[str]) -> list[list[int]]:
    """The new tokens of each prompt, in whose batch some may end before others."""
    given = _placed(model, inputs)
    ids = given[IDS]
    finite = LogitsProcessorList([FiniteLogits(asked)])
    with _fitting(given):
        whole: Int[Tensor, "b n"] = model.generate(
            **given, attention_mask=torch.ones_like(ids), logits_processor=finite
        )
    return whole[:, ids.shape[1] :].tolist()


def before_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens of an answer before the first end mark."""
    return ids[: next((index for index, each in enumerate(ids) if each in ends), len(ids))]


def _losses(model: PreTrainedModel, prompts: Prompts, batch: range, asked: Sequence[Question]) -> list[float]:
    """The summed loss of each answer, from the logits at its tokens (the one before each) and the one behind them."""
    counts = [prompts.answers[index] for index in batch]
    for question, count in zip(asked, counts, strict=True):
        if count == 0:
            raise InputError(
                f"the prompt of the question {question.text!r} has 0 tokens of its answer {question.answer!r}, expected at least 1: the "
                "chat template leaves the assistant's turn out; take the model's own template"
            )
    scored = max(counts)
    given = _placed(model, prompts.batch(batch))
    with _fitting(given):
        logits: Float[Tensor, "b n v"] = model(**given, use_cache=False, logits_to_keep=scored + 1).logits
    losses = cross_entropy(logits[:, :-1], given[IDS][:, -scored:])
    found = []
    for row, question, count in zip(losses, asked, counts, strict=True):
        own = row[-count:]
        if wrong := count - int(own.isfinite().sum()):
            raise NumericalError(
                f"{wrong} of the {count} losses in the answer to {question.text!r} are not finite, expected 0: check the weights, or load "
                "the model in bfloat16 or float32 (`backbone.dtype`)."
            )
        found.append(float(own.double().sum()))
    return found


@contextmanager
def _fitting(given: Inputs) -> Iterator[None]:
    """What a model raises over an image's tokens becomes an error with the remedy."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, IndexError) as error:
        if len(given) == 1:
            raise
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
        raise InputError(
            f"the model does not take a prompt with {shapes} ({str(error).strip().partition(chr(10))[0]}): expected as many image tokens "
            "as its vision tower gives features; the processor's patch size, image size or vision_feature_select_strategy belong to "
            "another model"
        ) from error


def _placed(model: PreTrainedModel, inputs: Inputs) -> dict[str, Tensor]:
    """The inputs where the model is; the blocks of one that is streamed are elsewhere (`mgaa.blocks.offload`)."""
    device = model.get_input_embeddings().weight.device
    return {name: tensor.to(device) for name, tensor in inputs.items()}
