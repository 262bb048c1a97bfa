"""Prompts: sequences of tokens, some of which stand for images, with the model's other inputs.

A question about an image and its answer become one sequence by the processor's own chat template, as in training, so that statistics
contain image tokens as inference does. Sequences keep their own lengths: padding never enters a statistic. Sequences of equal length, with
images of equal shape, go through the model together.

Plain token sequences are prompts without images, so everything that calibrates takes both.

Legend: s sequences, t tokens of a sequence.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from mgaa.boundary import translate_errors
from mgaa.errors import InputError, UsageError
from mgaa.inputs.readers import coerce_arguments
from mgaa.inputs.readers import processor as processor_of
from mgaa.models.model_inputs import IDS, Inputs
from mgaa.models.processors import Processor

if TYPE_CHECKING:
    from PIL.Image import Image


_UNUSED = ("attention_mask",)
"""Outputs of a processor that only concern padding, which does not occur."""


@dataclass(frozen=True)
class Question:
    """A user turn, with or without an image, and its answer."""

    text: str
    answer: str
    image: "Image | None" = None


@dataclass(frozen=True)
class Prompts:
    """Sequences of tokens and images.

    Attributes:
        sequences: inputs of each; the first dimension of every tensor is 1, or counts images or parts of them.
        answers: number of final tokens of each that form the answer; 0 where unknown.
        image_token: id that stands for a part of an image; `None` in plain text.
    """

    sequences: tuple[Inputs, ...]
    answers: tuple[int, ...]
    image_token: int | None = None

    @staticmethod
    def of(tokens: "Prompts | Int[Tensor, 's t']") -> "Prompts":
        """Turn plain token sequences into prompts; prompts stay unchanged.

        Raises:
            InputError: tokens are not two-dimensional, or empty.
        """
        if isinstance(tokens, Prompts):
            if not tokens.sequences:
                raise InputError("there are 0 prompts, expected at least one: give more questions")
            return tokens
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise InputError(
                f"calibration tokens have shape {tuple(tokens.shape)}, expected (sequences, length) with at least one token: "
                "give more text or shorter sequences"
            )
        return Prompts(tuple({IDS: row[None]} for row in tokens), (0,) * len(tokens))

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each sequence."""
        return [inputs[IDS].shape[1] for inputs in self.sequences]

    @property
    def tokens(self) -> int:
        """Number of tokens of all sequences."""
        return sum(self.lengths)

    @property
    def image_tokens(self) -> int:
        """Number of tokens that stand for images."""
        return 0 if self.image_token is None else int(torch.eq(self.ids(), self.image_token).sum())

    @property
    def has_images(self) -> bool:
        """True if any sequence has an image."""
        return self.image_tokens > 0

    def has_image(self, index: int) -> bool:
        """Return whether a sequence has an image."""
        return self.image_token is not None and bool((self.sequences[index][IDS] == self.image_token).any())

    def ids(self) -> Int[Tensor, " t"]:
        """Return the tokens of all sequences in one row."""
        return torch.cat([inputs[IDS][0] for inputs in self.sequences])

    def by_length(self) -> tuple["Prompts", list[int]]:
        """Sort the sequences by length, so that many go through the model together; also returns their original positions."""
        order = sorted(range(len(self)), key=self.lengths.__getitem__)
        chosen = Prompts(
            tuple(self.sequences[index] for index in order),
            tuple(self.answers[index] for index in order),
            self.image_token,
        )
        return chosen, order

    def split_by_shape(self, ranges: Sequence[range]) -> list[range]:
        """Cut these ranges where the shape of the inputs changes."""
        return [part for sequences in ranges for part in self._cut(sequences)]

    def batch(self, sequences: range) -> Inputs:
        """Return the inputs of consecutive sequences of one shape."""
        chosen = [self.sequences[index] for index in sequences]
        return {name: torch.cat([inputs[name] for inputs in chosen]) for name in chosen[0]}

    def image_mask(self, sequences: range) -> Bool[Tensor, "s t"] | None:
        """Return the mask of tokens that stand for images; `None` in plain text."""
        return None if self.image_token is None else self.batch(sequences)[IDS] == self.image_token

    def save(self, path: Path) -> None:
        """Write one safetensors file, the same bytes for the same prompts."""
        tensors = {
            f"{index}/{name}": tensor for index, inputs in enumerate(self.sequences) for name, tensor in inputs.items()
        }
        token = -1 if self.image_token is None else self.image_token
        notes = {"answers": torch.tensor(self.answers), "image_token": torch.tensor(token)}
        save_file({name: tensor.contiguous() for name, tensor in (tensors | notes).items()}, path)

    @staticmethod
    def load(path: Path) -> "Prompts":
        """Read what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        answers, token = tensors.pop("answers").tolist(), int(tensors.pop("image_token"))
        sequences: list[dict[str, Tensor]] = [{} for _ in answers]
        for name, tensor in tensors.items():
            index, _, key = name.partition("/")
            sequences[int(index)][key] = tensor
        return Prompts(tuple(sequences), tuple(answers), None if token < 0 else token)

    def _cut(self, sequences: range) -> Iterator[range]:
        first = sequences.start
        for index in sequences:
            if self._shape(index) != self._shape(first):
                yield range(first, index)
                first = index
        yield range(first, sequences.stop)

    def _shape(self, index: int) -> tuple[Any, ...]:
        """Return the shapes that sequences must share to go through the model together."""
        inputs = self.sequences[index]
        return inputs[IDS].shape[1], {name: tensor.shape[1:] for name, tensor in inputs.items()}


def _questions(name: str, value: Any) -> list[Question]:
    questions = [*value] if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    if wrong := [question for question in questions if not isinstance(question, Question)]:
        raise UsageError(f"{name} hold {wrong[0]!r:.60}, expected mgaa.Question(text, answer, image)")
    return questions


def _config(name: str, value: Any) -> PreTrainedConfig:
    config = value.config if isinstance(value, PreTrainedModel) else value
    if isinstance(config, PreTrainedConfig) and getattr(config, "image_token_id", None) is not None:
        return config
    raise UsageError(
        f"{name} is a {type(value).__name__}, expected the config of a vision-language model: model.config"
    )


@coerce_arguments(questions=_questions, processor=processor_of, config=_config)
def encode(
    questions: Sequence[Question], processor: Processor, config: PreTrainedConfig, *, answered: bool = True
) -> Prompts:
    """Encode questions for a model with this processor and config, in their order.

    Args:
        answered: append the answer to each question, as in training; otherwise the sequences end where the model is to answer.

    Raises:
        UsageError: the processor has no chat template.
        InputError: a prompt lacks its image token, or is longer than the model's positions.
    """
    if not isinstance(processor, ProcessorMixin) or processor.chat_template is None:
        raise UsageError(
            "the model's folder has no processor with a chat template, which makes prompts of questions and images: copy the model's own "
            "processor_config.json (or preprocessor_config.json) and chat_template.jinja there, and give a vision-language model"
        )
    token: int = config.image_token_id
    pairs = [_encode_question(question, processor, token, answered=answered) for question in questions]
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = max((inputs[IDS].shape[1] for inputs, _ in pairs), default=0)
    if positions is not None and longest > positions:
        raise InputError(
            f"the longest prompt has {longest} tokens, expected at most {positions} (the model's positions): leave it out, or give "
            "smaller images"
        )
    return Prompts(tuple(inputs for inputs, _ in pairs), tuple(answer for _, answer in pairs), token)


def _encode_question(
    question: Question, processor: Any, token: int, *, answered: bool
) -> tuple[dict[str, Tensor], int]:
    """Return the inputs of one sequence, and the number of its final tokens that form the answer."""
    asked = conversation(question, answered=False)
    turns = conversation(question, answered=True) if answered else asked
    makes_none = f"the processor cannot make a prompt of the question {question.text!r}"
    remedy = (
        "the question itself must not hold the image token, and the chat template must show it where there is an image"
    )
    with translate_errors(makes_none, remedy):
        encoded = processor.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=not answered
        )
    inputs = {name: tensor for name, tensor in encoded.items() if name not in _UNUSED}
    shown = int((inputs[IDS] == token).sum())
    if (question.image is not None) != (shown > 0):
        raise InputError(
            f"the prompt of the question {question.text!r} has {shown} image tokens {'with' if question.image else 'without'} an image: "
            "the chat template leaves images out, or the question itself holds the image token; correct the one that does"
        )
    if not answered:
        return inputs, 0
    with translate_errors(makes_none, remedy):
        before, whole = (
            processor.tokenizer(
                processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=chat is asked),
                add_special_tokens=False,
            )[IDS]
            for chat in (asked, turns)
        )
    same = next(
        (index for index, pair in enumerate(zip(before, whole, strict=False)) if pair[0] != pair[1]), len(before)
    )
    return inputs, max(0, len(whole) - same)


def conversation(question: Question, *, answered: bool) -> list[dict[str, Any]]:
    """Return the turns of a question in the form of chat templates."""
    image = [] if question.image is None else [{"type": "image", "image": question.image}]
    turns = [{"role": "user", "content": [*image, {"type": "text", "text": question.text}]}]
    if answered:
        turns.append({"role": "assistant", "content": [{"type": "text", "text": question.answer}]})
    return turns
