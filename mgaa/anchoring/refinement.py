"""Refinement: reduce the block error that closed-form fits leave, by some steps of Adam on all compressed matrices of a block at once.

Anchoring (`mgaa.anchoring`) fits one matrix after the other: q and k ignore the attention that is computed from them, gate and up ignore
their product. Here all of them, their biases and the refitted dense matrices are tuned jointly, so that the block maps the hidden states
`x'` of the compressed model to what the dense block computes from its own, `h = block(x)`:

    E[(h - h')^T G (h - h')] / E[h^T G h]  ->  min,    h' = block'(x')

`G` is the second moment of the loss's gradients at the output of the block where it was measured, and otherwise the identity. It needs no
labels and no task data, only the calibration tokens, one micro-batch per step; the weights, gradients and moments of one block exist at a
time. The outputs of the dense block are computed again in every step: keeping them would take the memory of all hidden states once more.
Our choice after measurements (docs/log.md); tuning block by block towards dense outputs is known from BRECQ (arXiv 2102.05426), for
quantisation, and from AA-SVD.

Legend: h hidden size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mgaa.errors import NumericalError, UsageError

DTYPES = (torch.bfloat16, torch.float32, torch.float64)
"""Dtypes of blocks that can be tuned; in float16 small gradients underflow to zero, unnoticed."""

_EPSILON = 1e-12
"""Epsilon of Adam: the gradients of a relative error with respect to millions of parameters are so small that the usual 1e-8 would
matter."""

DAMPING = 1e-2
"""Relative weight of the identity added to `G`: an error in a direction without gradient still disturbs later blocks."""


@dataclass(frozen=True)
class Refinement:
    """Settings of the tuning of blocks.

    Attributes:
        steps: of Adam per block, one micro-batch of the calibration each.
        rate: of the first step, relative to the root mean square of each tensor times the root of the block's relative error, because
            weights that are nearly right should change little; it decays to zero as half a cosine.
        seed: of the order of the micro-batches.

    Raises:
        UsageError: a value is out of range.
    """

    steps: int = 300
    rate: float = 0.06
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"refinement.{name} is {value!r}, expected a whole number from {least}")
        if not 0 < self.rate < math.inf:
            raise UsageError(f"refinement.rate is {self.rate}, expected a positive number such as 0.06")

    def order(self, batches: int) -> list[int]:
        """Return the micro-batch of each step: epochs over all of them, each in random order."""
        generator = torch.Generator().manual_seed(self.seed)
        epochs = [torch.randperm(batches, generator=generator) for _ in range(-(-self.steps // batches))]
        return torch.cat(epochs)[: self.steps].tolist()

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.rate * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True, eq=False)
class Outputs:
    """Outputs of a block for each micro-batch, dense and compressed.

    Attributes:
        batches: number of micro-batches.
        dense: computes the output of the dense block on dense hidden states.
        compressed: computes the output of the compressed block on those of the compressed model; with autograd where the caller has it on.
        root: `L` with `L L^T = G`; `None` is the identity.
    """

    batches: int
    dense: Callable[[int], Tensor]
    compressed: Callable[[int], Tensor]
    root: Float[Tensor, "h h"] | None = None

    def errors(self, batch: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the squared error and the squared norm of the dense output of a micro-batch: float32, or float64 for a float64 block."""
        with torch.no_grad():
            reference = self._weighed(self.dense(batch))
            power = reference.square().sum()
        return (reference - self._weighed(self.compressed(batch))).square().sum(), power

    @torch.no_grad()
    def error(self) -> float:
        """Return the relative error over all tokens."""
        lacking, power = zip(*(map(float, self.errors(batch)) for batch in range(self.batches)), strict=True)
        return math.fsum(lacking) / (math.fsum(power) or 1.0)

    def _weighed(self, hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, -2)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return rows if self.root is None else rows @ self.root.to(rows)


def root_of(gradient: Float[Tensor, "h h"] | None) -> Float[Tensor, "h h"] | None:
    """Return `L` of a damped second moment of gradients; `None` where there is none, or where all gradients are zero."""
    if gradient is None or not bool(gradient.any()):
        return None
    ridge = DAMPING * float(gradient.trace()) / len(gradient)
    identity = torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device)
    root: Tensor = torch.linalg.cholesky(gradient + ridge * identity)
    return root


def check_tunable(dtype: torch.dtype) -> None:
    """Refuse a model that cannot be tuned.

    Raises:
        UsageError: its dtype has no usable gradients.
    """
    if dtype not in DTYPES:
        raise UsageError(
            f"the backbone is in {str(dtype).removeprefix('torch.')}, which has no usable gradients (in float16 small ones underflow), "
            "expected bfloat16, float32 or float64: set backbone.dtype=bfloat16, or refinement.method=none"
        )


def refine_(
    block: nn.Module, linears: Sequence[nn.Module], outputs: Outputs, refinement: Refinement, *, name: str
) -> None:
    """Tune some layers of a block in place, if that lowers the error of its output; the rest of the block stays unchanged.

    The parameters get new tensors, so the original ones stay unchanged.

    Args:
        block: resident (`mgaa.blocks.offload`), in eval mode.
        linears: of the block; none of their tensors is shared with another module.
        name: of the block, for messages.

    Raises:
        NumericalError: an error is not finite; the layers stay unchanged.
    """
    parameters = [parameter for linear in linears for parameter in linear.parameters()]
    original, before, better = [parameter.detach() for parameter in parameters], outputs.error(), False
    _put_(parameters, [tensor.clone() for tensor in original])
    try:
        with _learning(block, parameters):
            _train_(parameters, outputs, refinement, before**0.5, name)
        better = outputs.error() < before
    finally:
        if not better:
            _put_(parameters, original)


def _put_(parameters: Sequence[nn.Parameter], tensors: Sequence[Tensor]) -> None:
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.data = tensor


def _train_(
    parameters: Sequence[nn.Parameter], outputs: Outputs, refinement: Refinement, way: float, name: str
) -> None:
    """Run Adam on copies in float32 or wider; the parameters are these copies, rounded."""
    masters = [each.detach().to(torch.promote_types(each.dtype, torch.float32), copy=True) for each in parameters]
    sizes = [way * float(each.square().mean().sqrt()) for each in masters]
    adam = torch.optim.Adam([{"params": [each]} for each in masters], eps=_EPSILON)
    for step, batch in enumerate(refinement.order(outputs.batches)):
        for group, size in zip(adam.param_groups, sizes, strict=True):
            group["lr"] = refinement.rate_at(step) * size
        for master, gradient in zip(masters, _loss_gradient(parameters, outputs, batch, name), strict=True):
            master.grad = None if gradient is None else gradient.to(master.dtype)
        adam.step()
        with torch.no_grad():
            for parameter, master in zip(parameters, masters, strict=True):
                parameter.copy_(master)


def _loss_gradient(
    parameters: Sequence[nn.Parameter], outputs: Outputs, batch: int, name: str
) -> Sequence[Tensor | None]:
    """Return the gradients of the error of a micro-batch; `None` for an expert that received no token of it."""
    with torch.enable_grad():
        lacking, power = outputs.errors(batch)
        error = lacking / power
        if not math.isfinite(float(error.detach())):
            raise NumericalError(
                f"the error of {name} is {float(error.detach())} while it is tuned, expected a finite number: lower refinement.rate, or "
                "set backbone.dtype to bfloat16 or float32"
            )
        return torch.autograd.grad(error, parameters, allow_unused=True)


@contextmanager
def _learning(block: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within this context, let autograd track only these parameters of the block."""
    before = {parameter: parameter.requires_grad for parameter in block.parameters()}
    try:
        block.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, learns in before.items():
            parameter.requires_grad_(learns)
