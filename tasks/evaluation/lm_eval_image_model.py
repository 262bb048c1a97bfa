"""A vision-language model in memory for the lm-evaluation-harness, with our prompts and images from local files.

The harness's own class for such models loads its processor by name, pads prompts on the left, cuts them on the left where they are long
(and so their images), and keeps the images of all items in memory. Here a request becomes a question of `mgaa.inputs.prompts` and is
answered by `mgaa.evaluation.answering`: nothing is padded or cut, generation is greedy, a logit that is not finite is an error, and images
are opened when it is their turn. What a task is, which answer is right and what is counted stays the harness's.

Imported by `tasks.evaluation.zero_shot` on first use, because the harness takes seconds to import.
"""

import copy
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from lm_eval.models.hf_vlms import HFMultimodalLM
from transformers import PreTrainedModel, ProcessorMixin

import tasks.evaluation.lm_eval_model  # noqa: F401 (turns the harness's chatter off)
from mgaa.errors import InputError
from mgaa.evaluation.answering import answer
from mgaa.inputs.prompts import Question
from tasks.data.questions import MARK, open_image

_AT_ONCE = 256
"""Requests whose images are open at once."""


class InMemoryVLM(HFMultimodalLM):  # type: ignore[misc]  # the harness has no types
    """A vision-language model with its processor; both are left as they are.

    Args:
        folder: where the paths of images begin.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        folder: Path,
        batch_size: int,
        max_length: int | None = None,
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(processor),  # the harness sets a padding token
            batch_size=batch_size,
            max_length=max_length,
        )
        self.own, self.folder = processor, folder
        self.bos_rule = "marks of the chat template"
        self.doing = "zero-shot"
        self.truncated = 0

    def _create_tokenizer(self, pretrained: PreTrainedModel, tokenizer: ProcessorMixin, **_: Any) -> None:
        """The harness's own forgets a processor that it is given."""
        self.processor, self.tokenizer = tokenizer, tokenizer.tokenizer

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Answers in the order of the requests, which come with their images; each ends before the first of its stop texts.

        Raises:
            InputError: an image that cannot be opened, several for one item, or a prompt that does not fit the model.
            NumericalError: a logit is not finite.
        """
        answers: list[str] = []
        for start in range(0, len(requests), _AT_ONCE):
            for length, group in groupby(requests[start : start + _AT_ONCE], key=_longest):
                asked = list(group)
                questions = [self._question(*each.args) for each in asked]
                said = answer(self.model, self.own, questions, batch_size=self.batch_size, max_new_tokens=length)
                answers += [_before(text, each.args[1]["until"]) for text, each in zip(said, asked, strict=True)]
        return answers

    def _question(self, text: str, _: dict[str, Any], shown: dict[str, Any]) -> Question:
        """A request as a question; the chat template puts the image's mark where the model expects it."""
        paths = shown["visual"]
        if len(paths) > 1:
            raise InputError(
                f"The item {text[:60]!r} has {len(paths)} images, expected at most 1: put them into one image."
            )
        image = open_image(self.folder / paths[0]) if paths else None
        return Question(text.replace(MARK, ""), "", image)


def _longest(request: Any) -> int:
    """Tokens of an answer at most."""
    tokens: int = request.args[1]["max_gen_toks"]
    return tokens


def _before(text: str, stops: Sequence[str]) -> str:
    """A text before the first stop."""
    for stop in stops:
        text = text.split(stop)[0]
    return text
