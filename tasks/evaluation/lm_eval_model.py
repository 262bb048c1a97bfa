"""A model in memory for the lm-evaluation-harness, counting the contexts that had to be cut.

The harness runs the context once per choice and takes the log-softmax of every position. Here requests with the same context share one
pass over it where the model has a cache for that (`tasks.evaluation.scoring`). The answers are those of the harness up to rounding; a test
compares them.

Imported by `tasks.evaluation.zero_shot` on first use, because the harness takes seconds to import. Its chatter (a banner of warnings about
models in memory, unnamed progress bars) is turned off here, once; one bar says which task is running.
"""

import copy
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import lm_eval.api.task
import torch
from lm_eval.models.huggingface import HFLM
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mgaa.errors import InputError, UsageError
from tasks.evaluation.scoring import Group, Way, way_of

logging.getLogger("lm_eval").setLevel(logging.ERROR)
lm_eval.api.task.tqdm = functools.partial(tqdm, disable=True)
datasets.disable_progress_bars()

Request = tuple[tuple[str, str], list[int], list[int]]
"""Texts of context and continuation, their ids."""

Answer = tuple[float, bool]
"""Log-likelihood of a continuation, and whether it is the greedy one."""


class InMemoryLM(HFLM):  # type: ignore[misc]  # the harness has no types
    """A causal language model with its tokenizer; both are left as they are.

    Args:
        add_bos_token: whether contexts begin with the beginning mark; None, as in the harness, where the tokenizer itself adds it.

    Raises:
        UsageError: a mark is asked for and the tokenizer has none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        max_length: int | None,
        add_bos_token: bool | None = None,
    ) -> None:
        if add_bos_token and tokenizer.bos_token_id is None:
            raise UsageError(
                "evaluation.add_bos_token is true, but the tokenizer of the model has no beginning mark: set it to null or false."
            )
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # the harness sets a padding token
            batch_size=batch_size,
            max_length=max_length,
            backend="causal",  # the decoders of encoder-decoders as well
            softmax_dtype="float32",
            add_bos_token=add_bos_token,
        )
        self.bos_rule = _bos_rule(self.tokenizer, add_bos_token)
        self.doing = "zero-shot"
        self.truncated = 0
        self._way: Way | None = None

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """Ids of a text; `add_special_tokens=False` asks for no mark. The harness adds none that the tokenizer does not add by itself."""
        if not self.add_bos_token or add_special_tokens is False:
            ids: list[int] = super().tok_encode(string, add_special_tokens, **options)
            return ids
        return [self.tokenizer.bos_token_id, *self.tokenizer.encode(string, add_special_tokens=False)]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Answer]:
        """Answers in the order of the requests, without the harness's bars."""
        answers: list[Answer] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[Answer]:
        self._check(requests)
        if self._way is None:
            self._way = way_of(self.model, _text(requests))
        answers: dict[int, Answer] = {}
        with tqdm(total=len(requests), desc=self.doing, unit=" requests", disable=None) as bar:
            for batch in self._batches(requests):
                answers.update(self._score(batch))
                bar.update(len(answers) - bar.n)
        return [answers[index] for index in range(len(requests))]

    def _check(self, requests: Sequence[Request]) -> None:
        if any(not context for _, context, _ in requests):
            raise InputError(
                f"A context of {self.doing} has no token before its continuation, expected at least 1: leave the item out, or set "
                "evaluation.add_bos_token=true."
            )
        longest = max(len(continuation) for _, _, continuation in requests)
        if longest > self.max_length:
            raise InputError(
                f"A continuation of {self.doing} has {longest} tokens, expected at most {self.max_length} (the context length): "
                "raise `max_length`, or use a model with more positions."
            )
        self.truncated += sum(
            len(context) + len(continuation) > self.max_length + 1 for _, context, continuation in requests
        )

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[Group]]:
        """Groups of falling context length, `batch_size` at a time."""
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            kept = context[-(self.max_length + 1 - len(continuation)) :]
            groups.setdefault(tuple(kept), []).append((index, continuation))
        ordered = sorted(groups.items(), key=lambda group: (-len(group[0]), group[0]))
        for start in range(0, len(ordered), self.batch_size):
            yield ordered[start : start + self.batch_size]

    def _score(self, groups: Sequence[Group]) -> dict[int, Answer]:
        """The answers to the requests of a batch."""
        assert self._way is not None
        wanted = {index: continuation for _, group in groups for index, continuation in group}
        return {
            index: _answer(logits, wanted[index]) for index, logits in self._way(self.model, groups, self.batch_size)
        }


def _bos_rule(tokenizer: PreTrainedTokenizerBase, add_bos_token: bool | None) -> str:
    """Beginning of a context, in words."""
    if add_bos_token is not None:
        return f"{tokenizer.bos_token} before each context" if add_bos_token else "no mark before contexts"
    own = ", ".join(map(str, tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"])))
    return f"{own or 'no mark'} with contexts, as the tokenizer itself adds"


def _text(requests: Sequence[Request]) -> list[int]:
    """The longest context with its continuation."""
    _, context, continuation = max(requests, key=lambda request: len(request[1]))
    return [*context, *continuation]


@torch.inference_mode()
def _answer(logits: torch.Tensor, continuation: list[int]) -> Answer:
    targets = torch.tensor(continuation, device=logits.device)
    likelihoods = logits.float().log_softmax(dim=-1).gather(1, targets[:, None])
    return float(likelihoods.double().sum()), bool((logits.argmax(dim=-1) == targets).all())
