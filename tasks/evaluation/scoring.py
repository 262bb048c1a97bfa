"""Logits of continuations behind their contexts: through the model's cache, or in whole where it has none that this could use.

Through the cache, requests with the same context share one pass over it, and the head runs only where something is scored: a third of the
time for four short choices. Contexts are padded on the left, as in generation with transformers.

That takes more of a model than being causal: keys and values of which rows can be selected, that several tokens at once can go on from, and
positions that follow the mask. State space models (Mamba, RWKV) and hybrids have a state instead, which padding would enter; decoders with
learnt positions count padding as a position. No config says so, so a model without an entry in `mgaa.models.entries` is asked: a few
contexts of different lengths must give the same both ways. In whole, a context and its continuation are one sequence, and nothing is
padded.

Legend: b sequences of a batch, n tokens, k tokens of a continuation, v vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.evaluation.causality import check_causal, probe_ids, results_differ, translate_forward_errors
from mgaa.models.architectures import has_entry

Group = tuple[tuple[int, ...], list[tuple[int, list[int]]]]
"""Ids of a context, and which requests with which continuations share it."""

Way = Callable[[PreTrainedModel, Sequence[Group], int], Iterator[tuple[int, Float[Tensor, "k v"]]]]
"""Gives, for every request of some groups, its index and the logits at each token of its continuation; `batch_size` sequences at a time."""

_ASKED = ((range(12), (3, 1)), (range(2, 7), (4,)), (range(4, 5), (2,)))
"""What the question about the cache asks: contexts by their place in the text, with the lengths of their continuations."""


def way_of(model: PreTrainedModel, ids: Sequence[int]) -> Way:
    """Way in which a model is scored.

    Args:
        ids: some text, at least two tokens.

    Raises:
        InputError: it looks ahead, or does not read token ids alone.
    """
    device = model.get_input_embeddings().weight.device
    asked = probe_ids(torch.tensor(list(ids)), model.get_input_embeddings().num_embeddings).to(device)
    with translate_forward_errors(model, asked.shape[1]), torch.inference_mode():
        check_causal(model, model(input_ids=asked, use_cache=False).logits)
    return through_cache if has_entry(model.config) or _has_cache(model, ids) else in_whole


def _has_cache(model: PreTrainedModel, ids: Sequence[int]) -> bool:
    """Whether a model gives the same logits through its cache as in one pass, up to rounding."""
    text, number = (list(ids) * 16)[:16], count()
    groups: list[Group] = [
        (
            tuple(text[place.start : place.stop]),
            [(next(number), text[place.stop : place.stop + tail]) for tail in tails],
        )
        for place, tails in _ASKED
    ]
    expected = dict(in_whole(model, groups, len(groups)))
    try:
        found = dict(through_cache(model, groups, len(groups)))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # whatever a model without such a cache raises, which is the answer
        return False
    return not any(results_differ(logits, found[index]) for index, logits in expected.items())


@torch.inference_mode()
def through_cache(
    model: PreTrainedModel, groups: Sequence[Group], batch_size: int
) -> Iterator[tuple[int, Float[Tensor, "k v"]]]:
    """Read the contexts, then every continuation after its context's keys and values (`Way`).

    Args:
        groups: of falling context length, `batch_size` of them at most.
    """
    device = model.get_input_embeddings().weight.device
    lengths = torch.tensor([len(context) for context, _ in groups], device=device)
    width = int(lengths[0])
    ids = torch.tensor([(0,) * (width - len(context)) + context for context, _ in groups], device=device)
    mask = (torch.arange(width, device=device) >= width - lengths[:, None]).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    read = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    owners = torch.tensor([row for row, (_, wanted) in enumerate(groups) for _ in wanted], device=device)
    wanted = [each for _, group in groups for each in group]
    logits = read.logits[owners]
    tails = [continuation[:-1] for _, continuation in wanted]
    if any(tails):
        read.past_key_values.batch_select_indices(owners)
        later = _continued(model, tails, mask[owners], lengths[owners], read.past_key_values)
        logits = torch.cat((logits, later), dim=1)
    return ((index, row[: len(continuation)]) for row, (index, continuation) in zip(logits, wanted, strict=True))


def _continued(
    model: PreTrainedModel, tails: list[list[int]], mask: Int[Tensor, "b n"], lengths: Int[Tensor, " b"], cache: Any
) -> Float[Tensor, "b k v"]:
    """Logits after each token of `tails`, padded on the right, where a causal model does not see it."""
    width = max(map(len, tails))
    ids = torch.tensor([tail + [0] * (width - len(tail)) for tail in tails], device=mask.device)
    seen = torch.cat((mask, torch.ones_like(ids)), dim=1)
    positions = lengths[:, None] + torch.arange(width, device=mask.device)
    out = model(input_ids=ids, attention_mask=seen, position_ids=positions, past_key_values=cache, use_cache=True)
    logits: Tensor = out.logits
    return logits


@torch.inference_mode()
def in_whole(
    model: PreTrainedModel, groups: Sequence[Group], batch_size: int
) -> Iterator[tuple[int, Float[Tensor, "k v"]]]:
    """Read every context with its continuation, those of one length together (`Way`)."""
    wanted = [(context, index, continuation) for context, asked in groups for index, continuation in asked]
    wanted.sort(key=_tokens)
    for _, group in groupby(wanted, key=_tokens):
        alike = list(group)
        for batch in (alike[start : start + batch_size] for start in range(0, len(alike), batch_size)):
            kept = max(len(continuation) for _, _, continuation in batch)
            logits = _tail(model, [[*context, *continuation[:-1]] for context, _, continuation in batch], kept)
            for row, (_, index, continuation) in zip(logits, batch, strict=True):
                yield index, row[-len(continuation) :]


def _tokens(request: tuple[tuple[int, ...], int, list[int]]) -> int:
    context, _, continuation = request
    return len(context) + len(continuation)


def _tail(model: PreTrainedModel, rows: list[list[int]], kept: int) -> Float[Tensor, "b k v"]:
    """Logits at the last `kept` positions; a few models give all of them."""
    ids = torch.tensor(rows, device=model.get_input_embeddings().weight.device)
    with translate_forward_errors(model, ids.shape[1]):
        logits: Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=kept).logits
    return logits[:, -kept:]
