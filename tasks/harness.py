"""The model as the lm-evaluation-harness sees it: in memory, with our rule for the beginning mark, counting what it had to cut.

The harness's own scoring takes the log-softmax of every position of a batch; here the head runs only from the first scored position
on, and the log-softmax only at scored ones (`mgaa.perplexity` does the same). The answers are those of the harness up to rounding; a
test compares them. Requests with the same input, such as the answers "yes" and "no", share one row, as in the harness.

Imported by `tasks.zero_shot` on first use, because the harness takes seconds to import. Its chatter (a banner of warnings about models
in memory, unnamed progress bars) is turned off here, once; one bar says which task is running.
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

from mgaa.errors import InputError

logging.getLogger("lm_eval").setLevel(logging.ERROR)
lm_eval.api.task.tqdm = functools.partial(tqdm, disable=True)
datasets.disable_progress_bars()

Request = tuple[tuple[str, str], list[int], list[int]]
"""Texts of context and continuation, their ids."""

Answer = tuple[float, bool]
"""Log-likelihood of a continuation, and whether it is the greedy one."""

Row = tuple[tuple[int, ...], list[tuple[int, list[int]]]]
"""Input ids, and which requests with which continuations they answer."""


class InMemory(HFLM):  # type: ignore[misc]  # the harness has no types
    """A causal language model with its tokenizer; both are left as they are."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int, max_length: int | None
    ) -> None:
        super().__init__(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # the harness sets a padding token
            batch_size=batch_size,
            max_length=max_length,
            softmax_dtype="float32",
        )
        self.doing = "zero-shot"
        self.truncated = 0

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, after the beginning mark if the tokenizer has one; `add_special_tokens=False` asks for none."""
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=False)
        bos = self.tokenizer.bos_token_id
        return ids if bos is None or add_special_tokens is False else [bos, *ids]

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Answer]:
        """Answers in the order of the requests, without the harness's bars."""
        answers: list[Answer] = super().loglikelihood(requests, disable_tqdm=True)
        return answers

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[Answer]:
        self._check(requests)
        answers: dict[int, Answer] = {}
        with tqdm(total=len(requests), desc=self.doing, unit=" requests", disable=None) as bar:
            for batch in self._batches(requests):
                answers.update(self._score(batch))
                bar.update(len(answers) - bar.n)
        return [answers[index] for index in range(len(requests))]

    def _check(self, requests: Sequence[Request]) -> None:
        longest = max(len(continuation) for _, _, continuation in requests)
        if longest > self.max_length:
            raise InputError(
                f"A continuation of {self.doing} has {longest} tokens, expected at most {self.max_length} (the context length): "
                "raise `max_length`, or use a model with more positions."
            )
        self.truncated += sum(
            len(context) + len(continuation) > self.max_length + 1 for _, context, continuation in requests
        )

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[Row]]:
        """Rows of falling length, `batch_size` at a time."""
        rows: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            ids = (context + continuation)[-self.max_length - 1 : -1]
            rows.setdefault(tuple(ids), []).append((index, continuation))
        ordered = sorted(rows.items(), key=lambda row: (-len(row[0]), row[0]))
        for start in range(0, len(ordered), self.batch_size):
            yield ordered[start : start + self.batch_size]

    @torch.inference_mode()
    def _score(self, rows: Sequence[Row]) -> Iterator[tuple[int, Answer]]:
        """Padded on the right, where a causal model does not see it."""
        width = len(rows[0][0])
        padded = torch.tensor([ids + (0,) * (width - len(ids)) for ids, _ in rows], device=self.device)
        first = min(len(ids) - len(continuation) for ids, wanted in rows for _, continuation in wanted)
        logits = self.model(input_ids=padded, use_cache=False, logits_to_keep=width - first).logits
        for row, (ids, wanted) in zip(logits, rows, strict=True):
            for index, continuation in wanted:
                yield index, _answer(row[len(ids) - len(continuation) - first : len(ids) - first], continuation)


def _answer(logits: torch.Tensor, continuation: list[int]) -> Answer:
    targets = torch.tensor(continuation, device=logits.device)
    likelihoods = logits.float().log_softmax(dim=-1).gather(1, targets[:, None])
    return float(likelihoods.double().sum()), bool((logits.argmax(dim=-1) == targets).all())
