"""Objective of a search: the distance of a compressed model from the text and from the dense model.

    objective = perplexity + weight * mean over sequences of sum over tokens KL(p_compressed || p_dense)

as in the code of Bolaco (arXiv 2405.10616; weight 1e-3). The sum over tokens grows with the length of the sequences, so the weight matters
less on short ones.

The reverse divergence needs the dense logits of every token. Stored whole they are as wide as the vocabulary. Their largest k entries with
the mass of the rest are compact, but only give a lower bound (docs/performance.md measures the gap). Here the *input of the head* is stored
instead, as wide as the model, and the logits are recomputed from it by the head itself, which compression leaves unchanged: they are exact,
at the cost of one more product with the head per token (2 % of a forward pass of a 7B model).

A non-finite loss or divergence is an error.

Legend: n windows, l tokens of a window, b windows of a batch, v vocabulary, h width of the model.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.evaluation.perplexity import check_windows, eval_mode, max_batch_size

WEIGHT = 1e-3
_CHUNK = 2**20
"""Logits of a chunk held in float32 at once, twice."""


@dataclass(frozen=True)
class Score:
    """Measurement of one model.

    Attributes:
        objective: the value that the search minimises.
        perplexity: of the windows.
        divergence: mean over windows of the sum over tokens of KL(p_compressed || p_dense), in nats; 0 where its weight is 0.
        losses: sum over the scored tokens of each window, in nats.
    """

    objective: float
    perplexity: float
    divergence: float
    losses: tuple[float, ...]


@torch.inference_mode()
def reference(model: PreTrainedModel, windows: Int[Tensor, "n l"], *, batch_size: int = 8) -> Float[Tensor, "n l h"]:
    """Compute the inputs of the dense model's head, in its dtype, on the CPU.

    Raises:
        InputError: the model has no head.
    """
    check_windows(model, windows.flatten(), windows.shape[1], None)
    head, seen, size = _head(model), list[Tensor](), min(batch_size, max_batch_size(model, windows.shape[1]))
    handle = head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].cpu()))
    try:
        with eval_mode(model):
            for ids in tqdm(torch.split(windows, size), desc="measuring the dense model", disable=None):
                model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        handle.remove()
    return torch.cat(seen)


@torch.inference_mode()
def objective(
    model: PreTrainedModel,
    windows: Int[Tensor, "n l"],
    dense: Float[Tensor, "_ _ h"] | None,
    *,
    weight: float = WEIGHT,
    batch_size: int = 8,
) -> Score:
    """Measure a compressed model; `dense` is the `reference` of the model that it was compressed from.

    Raises:
        UsageError: a weight without a reference, or one of other windows.
        NumericalError: a loss or a divergence is not finite.
    """
    check_windows(model, windows.flatten(), windows.shape[1], None)
    if weight and (dense is None or dense.shape[:2] != windows.shape):
        reference_shape = "none" if dense is None else f"one of {dense.shape[0]} windows of {dense.shape[1]} tokens"
        raise UsageError(
            f"the divergence has the weight {weight} and the dense reference is {reference_shape}: expected one of "
            f"{windows.shape[0]} windows of {windows.shape[1]} tokens"
        )
    losses: list[float] = []
    divergences: list[float] = []
    size = min(batch_size, max_batch_size(model, windows.shape[1]))
    with eval_mode(model):
        for start in tqdm(range(0, len(windows), size), desc="measuring a trial", disable=None, leave=False):
            ids = windows[start : start + size].to(model.device)
            hidden = dense[start : start + size].to(model.device) if weight and dense is not None else None
            sums: Tensor = _batch(model, ids, hidden)
            if not bool(sums.isfinite().all()):
                raise NumericalError(
                    f"a loss of the windows {start} to {start + len(ids) - 1} is not finite, expected finite numbers: the factors "
                    "leave the range of the dtype, load the model in bfloat16 or float32 (backbone.dtype)"
                )
            losses += sums[0].tolist()
            divergences += sums[1].tolist()
    nll = math.fsum(losses) / (windows.numel() - len(windows))
    if nll > 700:
        raise NumericalError(f"The mean loss is {nll:.3g} nats, so the perplexity is not finite: the model is broken.")
    perplexity, divergence = math.exp(nll), math.fsum(divergences) / len(windows)
    return Score(perplexity + weight * divergence, perplexity, divergence, tuple(losses))


def _batch(
    model: PreTrainedModel, ids: Int[Tensor, "b l"], hidden: Float[Tensor, "b l h"] | None
) -> Float[Tensor, "2 b"]:
    """Return loss and divergence of each window, summed over its tokens, in float64."""
    logits = model(input_ids=ids, use_cache=False).logits
    precise = torch.promote_types(logits.dtype, torch.float32)
    losses = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
    divergences = torch.zeros_like(losses)
    step = max(1, _CHUNK // (logits.shape[0] * logits.shape[2]))
    targets = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -1)], dim=1)
    dense = None if hidden is None else logits_of(model, hidden)
    for start in range(0, ids.shape[1], step):
        here = slice(start, start + step)
        ours = logits[:, here].to(precise).log_softmax(-1)
        labels = targets[:, here]
        picked = ours.gather(2, labels.clamp(min=0).unsqueeze(2)).squeeze(2)
        losses -= torch.where(labels >= 0, picked, 0.0).double().sum(1)
        if dense is not None:
            theirs = dense[:, here].to(precise).log_softmax(-1)
            divergences += (ours.exp() * (ours - theirs)).sum(-1).double().sum(1)
    return torch.stack([losses, divergences])


def logits_of(model: PreTrainedModel, hidden: Float[Tensor, "b l h"]) -> Float[Tensor, "b l v"]:
    """Compute the logits from inputs of the head, by the model's own forward, which includes any operation after the head.

    The forward runs on one token, and the input of its head is replaced.
    """
    handle = _head(model).register_forward_pre_hook(lambda _, arguments: (hidden, *arguments[1:]))
    try:
        ids = torch.zeros((len(hidden), 1), dtype=torch.int64, device=hidden.device)
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits
    finally:
        handle.remove()


def _head(model: PreTrainedModel) -> nn.Module:
    head: nn.Module | None = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} has no head (output embeddings): expected a causal language model")
    return head
