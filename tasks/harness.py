"""The model as the lm-evaluation-harness sees it: in memory, with our rule for the beginning mark, counting what it had to cut.

The harness runs the context once per choice and takes the log-softmax of every position. Here requests with the same context share one
pass over it, and the head runs only where something is scored: a third of the time for four short choices. Contexts are padded on the
left, as in generation with transformers, so that every architecture which generates can be scored. The answers are those of the harness
up to rounding; a test compares them.

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

Group = tuple[tuple[int, ...], list[tuple[int, list[int]]]]
"""Ids of a context, and which requests with which continuations share it."""


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

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[Group]]:
        """Groups of falling context length, `batch_size` at a time."""
        groups: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        for index, (_, context, continuation) in enumerate(requests):
            kept = context[-(self.max_length + 1 - len(continuation)) :]
            groups.setdefault(tuple(kept), []).append((index, continuation))
        ordered = sorted(groups.items(), key=lambda group: (-len(group[0]), group[0]))
        for start in range(0, len(ordered), self.batch_size):
            yield ordered[start : start + self.batch_size]

    @torch.inference_mode()
    def _score(self, groups: Sequence[Group]) -> dict[int, Answer]:
        """Read the contexts, then every continuation after its context's keys and values."""
        lengths = torch.tensor([len(context) for context, _ in groups], device=self.device)
        width = int(lengths[0])
        ids = torch.tensor([(0,) * (width - len(context)) + context for context, _ in groups], device=self.device)
        mask = (torch.arange(width, device=self.device) >= width - lengths[:, None]).long()
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        read = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
        owners = torch.tensor([row for row, (_, wanted) in enumerate(groups) for _ in wanted], device=self.device)
        wanted = [each for _, group in groups for each in group]
        logits = read.logits[owners]
        tails = [continuation[:-1] for _, continuation in wanted]
        if any(tails):
            read.past_key_values.batch_select_indices(owners)
            later = self._continue(tails, mask[owners], lengths[owners], read.past_key_values)
            logits = torch.cat((logits, later), dim=1)
        return {index: _answer(row, continuation) for row, (index, continuation) in zip(logits, wanted, strict=True)}

    def _continue(self, tails: list[list[int]], mask: torch.Tensor, lengths: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits after each token of `tails`, padded on the right, where a causal model does not see it."""
        width = max(map(len, tails))
        ids = torch.tensor([tail + [0] * (width - len(tail)) for tail in tails], device=self.device)
        seen = torch.cat((mask, torch.ones_like(ids)), dim=1)
        positions = lengths[:, None] + torch.arange(width, device=self.device)
        out = self.model(
            input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True
        )
        logits: torch.Tensor = out.logits
        return logits


def _answer(logits: torch.Tensor, continuation: list[int]) -> Answer:
    targets = torch.tensor(continuation, device=logits.device)
    logits = logits[: len(targets)]
    likelihoods = logits.float().log_softmax(dim=-1).gather(1, targets[:, None])
    return float(likelihoods.double().sum()), bool((logits.argmax(dim=-1) == targets).all())
