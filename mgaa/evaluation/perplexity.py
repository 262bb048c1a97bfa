"""Perplexity of a token stream, by windows of a stated length.

The number depends on how much context each token has: LLaMA-7B scores 12.6 on WikiText-2 with windows of 128 tokens and 5.7 with
windows of 2048. So the length is an argument without a default, and the result carries it.

Non-overlapping (`stride` None): the stream is cut into windows of `length` tokens, the last one may be shorter. The first token of a
window has no context and is not scored. Strided: windows start every `stride` tokens and each scores only its last `stride` tokens
(the first window: all but its first token; the last window: the remainder), so that every scored token but those of the first window
has at least `length - stride` tokens of context. A stride equal to the length is the non-overlapping case. This is the procedure that
the documentation of transformers describes (https://huggingface.co/docs/transformers/perplexity).

Numerics: the logits are those of the model in its dtype, only at scored positions. Log-softmax is taken in float32 (float64 for a float64
    model), a chunk of positions at a time, and losses are summed in float64. Batches hold windows of equal length, so nothing is padded.
    All windows pass through a model whose blocks are offloaded (`mgaa.blocks.offload`) block by block; the bits are the same.

Standard error: with window losses `s_i` over `n_i` scored tokens, N windows, `m = sum s / sum n`, it is that of a ratio of sums,
`sqrt(N / (N - 1) * sum (s_i - m n_i)^2) / sum n` (Cochran 1977, 2.11), which for equal `n_i` is the standard deviation of the window
means over `sqrt(N)`. Windows are treated as independent; in one text neighbours are not quite, so it is a lower estimate.

A non-finite loss ends the evaluation with an error. Leaving such windows out would turn a broken model into a good number. So does a model
of any architecture that looks ahead (`mgaa.evaluation.causality`): a probe passes through it before the windows, or along with them.

Legend: t tokens of a stream, b windows of a batch, l tokens of a window, s scored tokens of a window, v vocabulary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mgaa.blocks.blockwise import Blockwise
from mgaa.blocks.hidden_states import Place
from mgaa.blocks.offload import is_offloaded
from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.evaluation.causality import check_causal, probe_ids, translate_forward_errors
from mgaa.inputs.readers import coerce_arguments, to_run
from mgaa.inputs.token_rows import Ids
from mgaa.inputs.token_rows import stream as ids_of
from mgaa.inputs.tokens import check_vocabulary, positions_of
from mgaa.inputs.values import integer, integer_or_none
from mgaa.models.model_inputs import IDS

_CHUNK = 2**22
"""Number of logits held in float32 at once: 16 MB, which caches hold (evaluation is 5 % faster than with 64 MB)."""

_BATCH = 2**27
"""Maximum number of logits of a batch (512 MB in float32); larger vocabularies get smaller batches."""


@dataclass(frozen=True)
class Perplexity:
    """Perplexity of a model on a stream, with the protocol."""

    nll: float
    """Mean negative log-likelihood of a scored token, in nats."""
    perplexity: float
    """exp(nll)."""
    standard_error: float | None
    """Standard error of `nll`, in nats; None where there is a single window. That of the perplexity is `perplexity` times this."""
    tokens: int
    """Scored tokens."""
    windows: int
    length: int
    stride: int
    losses: tuple[float, ...]
    """Sum of the losses of each window in stream order, in nats; with `counts`, the basis of paired comparisons of models."""
    counts: tuple[int, ...]
    """Scored tokens of each window."""
    non_finite: int = 0
    """Number of non-finite losses: always 0, because one of them is an error."""

    def bits_per_byte(self, tokens: int, bytes: int) -> float:
        """Return the bits to code one byte of text: `nll / ln 2 * tokens / bytes`, comparable between tokenizers.

        `tokens` and `bytes` are those of the whole stream (`mgaa.inputs.tokens.Stream`): unscored tokens count with the mean, marks count
        as tokens because a decoder needs them.
        """
        return self.nll / math.log(2) * tokens / bytes


@dataclass(frozen=True)
class _Window:
    start: int
    end: int
    scored: int


@coerce_arguments(model=to_run, stream=ids_of, length=integer, stride=integer_or_none, batch_size=integer)
@torch.inference_mode()
def perplexity(
    model: PreTrainedModel,
    stream: Ids,
    *,
    length: int,
    stride: int | None = None,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    place: Place = "device",
    folder: Path | None = None,
) -> Perplexity:
    """Measure the perplexity of `model` on `stream`; the module docstring has the protocol.

    Args:
        model: a causal language model of transformers, of any architecture; used in eval mode and left in the mode it came in.
        stream: packed documents (`mgaa.inputs.tokens.pack`), or one sequence in any form of `mgaa.inputs.token_rows`.
        length: tokens of a window.
        stride: tokens between the starts of windows; None means `length`.
        batch_size: windows per forward pass. The result depends on it by rounding only (a relative 1e-6 in float32).
        device: device of the model; None to determine it.
        place, folder: where hidden states are held while a model goes block by block (`mgaa.blocks.hidden_states`); an interrupted call
            resumes there.

    Raises:
        UsageError: a length beyond the model's positions, or a stride beyond the length.
        InputError: fewer than two tokens, ids outside the vocabulary, a model that looks ahead, or one that does not accept token ids
            alone.
        NumericalError: a loss is not finite (the message names the window).
    """
    assert isinstance(stream, Tensor)
    check_windows(model, stream, length, stride)
    if batch_size < 1:
        raise UsageError(f"The evaluation batch size is {batch_size}, expected at least 1: change `batch_size`.")
    cuts = _cut_windows(len(stream), length, stride or length)
    batches = list(_batches(cuts, min(batch_size, max_batch_size(model, length))))
    ids = [torch.stack([stream[cut.start : cut.end] for cut in batch]) for batch in batches]
    ids.append(probe_ids(stream[:length], model.get_input_embeddings().num_embeddings))
    forward = (
        _forward_blockwise(model, ids, place, folder)
        if is_offloaded(model)
        else _forward_whole(model, ids, device or model.device)
    )
    losses: list[float] = []
    with eval_mode(model):
        check_causal(model, forward(len(batches)).logits)
    with eval_mode(model), tqdm(total=len(cuts), desc="measuring perplexity", unit=" windows", disable=None) as bar:
        for number, batch in enumerate(batches):
            losses += _losses(forward(number, logits_to_keep=batch[0].scored + 1).logits, ids[number], batch)
            bar.update(len(batch))
    return _summary(losses, [cut.scored for cut in cuts], length, stride or length)


Forward = Callable[..., Any]
"""Computes the output of the model for a batch, by its number, with further arguments by name."""


def _forward_whole(model: PreTrainedModel, ids: Sequence[Int[Tensor, "_ _"]], device: torch.device | str) -> Forward:
    def forward(number: int, **options: Any) -> Any:
        with translate_forward_errors(model, ids[number].shape[1]):
            return model(input_ids=ids[number].to(device), use_cache=False, **options)

    return forward


def _forward_blockwise(
    model: PreTrainedModel, ids: Sequence[Int[Tensor, "_ _"]], place: Place, folder: Path | None
) -> Forward:
    with eval_mode(model):
        blockwise = Blockwise(model, [{IDS: batch} for batch in ids], place=place, folder=folder)
        for index in tqdm(range(blockwise.passed, len(blockwise)), desc="passing blocks", disable=None):
            blockwise.advance(index)
            blockwise.commit()
    return blockwise.output


def check_windows(model: PreTrainedModel, stream: Int[Tensor, " t"], length: int, stride: int | None) -> None:
    """Refuse windows that do not fit the model.

    Raises:
        UsageError, InputError: as `perplexity`.
    """
    positions = positions_of(model.config)
    if length < 2 or (positions is not None and length > positions):
        raise UsageError(
            f"The evaluation length is {length}, expected 2 to {positions} (the model's positions): change `length`."
        )
    if stride is not None and not 1 <= stride <= length:
        raise UsageError(f"The evaluation stride is {stride}, expected 1 to {length} (the length): change `stride`.")
    if len(stream) < 2:
        raise InputError(f"The evaluation text has {len(stream)} tokens, expected at least 2: give more text.")
    check_vocabulary(stream, model.get_input_embeddings().num_embeddings)


def _cut_windows(total: int, length: int, stride: int) -> list[_Window]:
    """Cut windows in stream order, leaving out any without a scored token."""
    windows, done = [], 0
    for start in range(0, total, stride):
        end = min(start + length, total)
        scored = end - max(done, start + 1)
        done = end
        if scored > 0:
            windows.append(_Window(start, end, scored))
        if end == total:
            break
    return windows


def _batches(cuts: list[_Window], size: int) -> Iterator[list[_Window]]:
    """Yield batches of consecutive windows of equal length and equal number of scored tokens."""
    batch: list[_Window] = []
    for cut in cuts:
        if batch and (len(batch) == size or _shape(cut) != _shape(batch[0])):
            yield batch
            batch = []
        batch.append(cut)
    yield batch


def _shape(cut: _Window) -> tuple[int, int]:
    return cut.end - cut.start, cut.scored


def max_batch_size(model: PreTrainedModel, length: int) -> int:
    """Return the number of windows whose logits fit into memory at once."""
    vocabulary: int = model.get_input_embeddings().num_embeddings
    return max(1, _BATCH // (length * vocabulary))


def _losses(logits: Float[Tensor, "b l v"], ids: Int[Tensor, "b n"], batch: list[_Window]) -> list[float]:
    """Return the summed loss of each window, from the logits one position before each scored token, and one extra at the end."""
    scored = batch[0].scored
    losses = cross_entropy(logits[:, -scored - 1 : -1], ids[:, -scored:].to(logits.device))
    for cut, finite in zip(batch, losses.isfinite(), strict=True):
        if not bool(finite.all()):
            raise NumericalError(
                f"{scored - int(finite.sum())} of the {scored} losses in the window of tokens {cut.start} to {cut.end} are not finite, "
                "expected 0: check the weights, or load the model in bfloat16 or float32 (`backbone.dtype`)."
            )
    return losses.double().sum(dim=1).tolist()


def cross_entropy(logits: Float[Tensor, "b s v"], targets: Int[Tensor, "b s"]) -> Float[Tensor, "b s"]:
    """Compute negative log-likelihoods in float32, or float64 where the logits are, a chunk of positions at a time.

    The results have their place before the first chunk: small tensors allocated between chunks keep the heap from using their memory again.
    """
    precise = torch.promote_types(logits.dtype, torch.float32)
    step = max(1, _CHUNK // (logits.shape[0] * logits.shape[2]))
    losses = torch.empty(targets.shape, dtype=precise, device=logits.device)
    for start in range(0, targets.shape[1], step):
        part, target = (each[:, start : start + step] for each in (logits, targets))
        found = functional.cross_entropy(part.to(precise).flatten(0, 1), target.flatten(), reduction="none")
        losses[:, start : start + step] = found.view_as(target)
    return losses


def _summary(losses: list[float], counts: list[int], length: int, stride: int) -> Perplexity:
    nll, error = mean_loss(losses, counts)
    return Perplexity(nll, math.exp(nll), error, sum(counts), len(losses), length, stride, tuple(losses), tuple(counts))


def mean_loss(losses: Sequence[float], counts: Sequence[int]) -> tuple[float, float | None]:
    """Return the mean loss of a token and its standard error, both in nats, from the summed losses of groups (module docstring).

    Args:
        losses: of each group (a window, an answer), the sum over its scored tokens.
        counts: scored tokens of each.

    Returns:
        The mean and the error, which is None where there is a single group.

    Raises:
        NumericalError: the exponential of the mean is not finite.
    """
    tokens, number = sum(counts), len(losses)
    nll = math.fsum(losses) / tokens
    if nll > 700:
        raise NumericalError(f"The mean loss is {nll:.3g} nats, so the perplexity is not finite: the model is broken.")
    scatter = math.fsum((loss - nll * count) ** 2 for loss, count in zip(losses, counts, strict=True))
    return nll, math.sqrt(number / (number - 1) * scatter) / tokens if number > 1 else None


@contextmanager
def eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Within this context the model is in eval mode; afterwards each module is in its former mode, and new modules in that of the model."""
    training, modes = model.training, {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module in model.modules():
            module.training = modes.get(module, training)
