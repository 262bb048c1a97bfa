"""Sensitivity of the loss to errors in the outputs of linears: second moments of the gradients, by one forward and one backward pass.

For every linear `y = W x + b` of the decoder: `G = 1/T sum_t g_t g_t^T`, with `g_t` the gradient of the loss with respect to the output for
token t, and T the number of all calibration tokens. The loss is the sum of the cross-entropies of all next tokens, in nats. `G` is the
output factor of Kronecker-factored curvature (Martens and Grosse, 2015), with the tokens of the text as targets: the empirical Fisher
matrix. An expert of a mixture sums over its own tokens and divides by T as well, so that an error `E` of any matrix weighs
`tr(G E Cov(x) E^T)`, in one unit.

The tokens pass through the blocks, and the hidden states at the input of each are kept. The gradient after the last block comes from norm,
head and loss; then each block, from the last to the first, recomputes its forward with autograd for the activations only. This costs about
three forward passes and the sums, and one block's weights are needed at a time. The statistics of the inputs
(`mgaa.statistics.calibration`) can be measured in the second of these passes (`differentiate_model`). Products of gradients are float32
(float64 for a float64 model) and are summed in float64, sequence by sequence in order, so that a smaller micro-batch changes nothing beyond
what the forward pass itself changes.

float16 is refused: with five bits of exponent, gradients below 6e-8 underflow to zero unnoticed; bfloat16 reaches 1e-38.

Legend: s sequences, t tokens of a sequence.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from mgaa.blocks.blockwise import Blockwise
from mgaa.blocks.hidden_states import HiddenStates, Place
from mgaa.blocks.offload import load_block
from mgaa.budget import Matrix
from mgaa.errors import NumericalError, UsageError
from mgaa.evaluation.perplexity import cross_entropy, max_batch_size
from mgaa.inputs.prompts import Prompts
from mgaa.models.architectures import DECODER, matrices_of, stacks_of
from mgaa.models.model_inputs import IDS
from mgaa.statistics.calibration import CalibrationSettings, SequenceObserver, check_tokens, observer_of
from mgaa.statistics.gradient_hooks import GradientObserver, Gradients, check_finite
from mgaa.statistics.hooks import Observer
from mgaa.statistics.shares import Share
from mgaa.statistics.statistics import BlockStatistics

DTYPES = (torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of weights with usable gradients."""


def stream_gradients(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    *,
    batch_size: int = 8,
    unreached: str = "stop",
    place: Place = "device",
    folder: Path | None = None,
) -> Iterator[tuple[int, Gradients]]:
    """Yield the second moments of every decoder block with its index, from the last block to the first.

    Args:
        model: a transformers causal language model with an entry in `mgaa.models.entries`, split (`mgaa.models.fused.unfuse_`), in eval
            mode.
        tokens: calibration sequences without padding; or prompts, of which the loss counts the tokens of text.
        batch_size: sequences of a micro-batch; fewer where their logits take too much memory.
        unreached: as in `mgaa.statistics.calibration.CalibrationSettings`; experts that stay dense have no moments.
        place, folder: where the hidden states are held (`mgaa.blocks.hidden_states`). An interrupted call resumes after the last block for
            which the caller has requested the next.

    Raises:
        UsageError: the dtype has no usable gradients, or there are fewer tokens than outputs; raised in the call itself, like all errors in
            the model or the tokens.
        InputError: the tokens or the model cannot be used, or no token reaches an expert.
        NumericalError: a gradient is not finite (the message names layer and sequence), or all of them vanish.
    """
    prompts, ranges = _prepare_tokens(model, tokens, batch_size)

    def alone() -> Iterator[tuple[int, Gradients]]:
        waiting: dict[str, Any] = {"place": place, "folder": folder}
        for index, gradients, _ in _forward_and_backward(model, prompts, ranges, unreached=unreached, **waiting):
            yield index, gradients
            del gradients  # free it while the next block is measured

    return alone()


def differentiate_model(
    model: PreTrainedModel,
    tokens: Prompts | Int[Tensor, "s t"],
    measuring: CalibrationSettings,
    *,
    parts: Sequence[str] = DECODER,
) -> Iterator[tuple[int, BlockStatistics]]:
    """Yield the statistics of every decoder block with the gradients of its linears, in memory, from the last block to the first.

    Those of the inputs equal those of `mgaa.statistics.calibration.stream_statistics`, on as many sequences at a time, and cost no
    additional pass.

    Args:
        model, tokens: as in `stream_gradients`, with its errors.
        measuring: the settings.
        parts: parts of the model to measure.

    Raises:
        UsageError: parts other than the decoder.
    """
    check_parts(parts)
    prompts, ranges = _prepare_tokens(model, tokens, measuring.batch_size)

    def together() -> Iterator[tuple[int, BlockStatistics]]:
        blocks = _forward_and_backward(model, prompts, ranges, measuring, unreached=measuring.unreached)
        for index, gradients, observer in blocks:
            assert observer is not None
            yield index, replace(observer.finish(), gradients=gradients)
            del gradients, observer  # free both while the next block is measured

    return together()


def check(matrices: Sequence[Matrix], dtypes: Iterable[torch.dtype], tokens: int) -> None:
    """Refuse, before any measurement, models whose gradients cannot be measured.

    Args:
        matrices: of the decoder.
        dtypes: of the weights.
        tokens: of the calibration.

    Raises:
        UsageError: a dtype has no usable gradients, or there are fewer tokens than outputs of a matrix.
    """
    if wrong := sorted({str(dtype).removeprefix("torch.") for dtype in {*dtypes} - {*DTYPES}}):
        raise UsageError(
            f"the backbone has weights in {', '.join(wrong)}, which have no usable gradients (in float16 small ones underflow), expected "
            "bfloat16, float32 or float64: set backbone.dtype=bfloat16, take the original of a quantised checkpoint, or set "
            "statistics.gradients=false"
        )
    widest = max(matrices, key=lambda matrix: matrix.m)
    if tokens < widest.m:
        raise UsageError(
            f"the calibration has {tokens} tokens, expected at least {widest.m}, as many as {widest.name} has outputs: the second moment "
            "of fewer gradients is singular; raise data.calibration.samples"
        )


def check_parts(parts: Sequence[str]) -> None:
    """Refuse parts of a model other than the decoder.

    Raises:
        UsageError: there are such parts.
    """
    if others := [part for part in parts if part not in DECODER]:
        raise UsageError(
            f"gradients are measured for the decoder only, but {', '.join(others)} is to be compressed as well: set "
            "backbone.parts=[decoder], or statistics.gradients=false"
        )


def _prepare_tokens(
    model: PreTrainedModel, tokens: Prompts | Int[Tensor, "s t"], batch_size: int
) -> tuple[Prompts, list[range]]:
    """Return the tokens, and the sequences of each micro-batch, after every check that needs no pass."""
    prompts = check_tokens(tokens, model.get_input_embeddings().num_embeddings)
    check(matrices_of(model), (parameter.dtype for parameter in model.parameters()), prompts.tokens)
    size = CalibrationSettings(batch_size=min(batch_size, max_batch_size(model, max(prompts.lengths)))).batch_size
    return prompts, prompts.split_by_shape(Share(len(prompts)).batches(size))


def _forward_and_backward(
    model: PreTrainedModel,
    prompts: Prompts,
    ranges: list[range],
    measuring: CalibrationSettings | None = None,
    *,
    unreached: str = "stop",
    place: Place = "device",
    folder: Path | None = None,
) -> Iterator[tuple[int, Gradients, Observer | None]]:
    """Yield the gradients of every block, and the observer of its inputs; a block is complete when the next is requested."""
    (stack,) = stacks_of(model)
    images = [prompts.image_mask(batch) for batch in ranges]
    waiting: dict[str, Any] = {"place": place, "folder": folder and folder / "hidden"}
    blockwise = Blockwise(model, [prompts.batch(batch) for batch in ranges], every=True, float32=True, **waiting)
    for index in tqdm(range(blockwise.passed, len(blockwise)), desc="passing blocks", disable=None):
        blockwise.advance(index)
        blockwise.commit()
    waiting["folder"] = folder and folder / "gradients"
    gradients = HiddenStates(len(ranges), model.get_input_embeddings().weight.device, **waiting)
    moved = gradients.resumed
    if gradients.resumed:
        gradients.resume()
    else:
        _start(blockwise, prompts, ranges, gradients)
    for index in tqdm(range(len(blockwise) - gradients.passed, -1, -1), desc="differentiating blocks", disable=None):
        feedback, observer = GradientObserver(stack, index, ranges), None
        with load_block(stack.blocks[index], ahead=-1), feedback.attach(), ExitStack() as observing:
            watches: list[Any] = [feedback]
            if measuring is not None:
                observer = observer_of(stack, index, measuring, Share(len(prompts)))
                observing.enter_context(observer.attach())
                watches.append(SequenceObserver(observer, ranges, images))
            blockwise.backward(index, gradients, _Observers(watches))
        moments = feedback.finish(prompts.tokens, unreached)
        moved = moved or any(bool(moment.any()) for moment in moments.values())
        if not moved and index == 0:
            blockwise.close()
            gradients.close()
            raise _explain_missing("the outputs of all linears")
        yield index, moments, observer
        del moments, feedback, observer, watches  # free all while the next block is measured
        gradients.commit()
    blockwise.close()
    gradients.close()


@dataclass(frozen=True)
class _Observers:
    """Several observers of one block."""

    watches: Sequence[Any]

    def enter(self, batch: int, hidden: Tensor) -> None:
        """Start a micro-batch."""
        for observer in self.watches:
            observer.enter(batch, hidden)

    def leave(self, hidden: Tensor) -> None:
        """End a micro-batch."""
        for observer in self.watches:
            observer.leave(hidden)


def _start(blockwise: Blockwise, prompts: Prompts, ranges: Sequence[range], gradients: HiddenStates) -> None:
    """Compute the gradients after the last block."""
    moved = False
    for batch, sequences in enumerate(ranges):
        gradient = blockwise.loss_gradient(batch, _loss(prompts, sequences))
        for offset, rows in enumerate(gradient.reshape(len(sequences), -1, gradient.shape[-1])):
            check_finite(rows, "the hidden states after the last block", sequences.start + offset)
        moved = moved or bool(gradient.any())
        gradients.put(batch, gradient)
    if not moved:
        raise _explain_missing("the hidden states after the last block")
    gradients.commit()


def _loss(prompts: Prompts, sequences: range) -> Callable[[Any], Tensor]:
    """Return the sum of the cross-entropies of all next text tokens of these sequences, as a function of the output."""
    targets = prompts.batch(sequences)[IDS][:, 1:]
    images = prompts.image_mask(sequences)

    def loss(output: Any) -> Tensor:
        losses = cross_entropy(output.logits[:, :-1], targets.to(output.logits.device))
        return (losses if images is None else losses[~images[:, 1:].to(losses.device)]).sum()

    return loss


def _explain_missing(of: str) -> NumericalError:
    return NumericalError(
        f"the gradient of {of} is zero for every calibration token, so the loss does not depend on them: the norm after the blocks or the "
        "head is zero, or every sequence is a single token; check the weights and data.calibration.length"
    )
