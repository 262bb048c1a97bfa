"""What closed forms leave of the error of a block, tuned away: some steps of Adam on all compressed matrices of the block at once.

Anchoring (`mgaa.anchoring`) answers one matrix after the other: q and k do not know of the attention that is made of them, gate and up not
of their product. Here all of them, their biases and the refitted dense matrices are tuned together, so that the block gives on the hidden
states `x'` that arrive in the compressed model what the dense block gives on its own, `h = block(x)`:

    E[(h - h')^T G (h - h')] / E[h^T G h]  ->  min,    h' = block'(x')

`G` is the second moment of the loss's gradients at the output of the block where it was measured, and else the identity. No labels and no
task data, only the calibration tokens, one micro-batch a step; one block's weights, gradients and moments are there at a time. What the
dense block gives is computed again in every step: to keep it would take the memory of all hidden states once more. Our choice after
measurements (docs/log.md); blocks tuned one after the other to dense outputs are known from BRECQ (arXiv 2102.05426), for quantisation, and
from AA-SVD.

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
"""Of blocks that can be tuned; in float16 small gradients are zero, and nothing would tell."""

_EPSILON = 1e-12
"""Of Adam: the gradients of a relative error with respect to millions of parameters are small, and the usual 1e-8 would be felt."""

DAMPING = 1e-2
"""Relative weight of the identity beside `G`: an error that no gradient minds is still one for the blocks behind."""


@dataclass(frozen=True)
class Refinement:
    """How blocks are tuned.

    Attributes:
        steps: of Adam per block, one micro-batch of the calibration each.
        rate: of the first step, relative to the root mean square of each tensor times the root of the block's relative error, for what is
            nearly right is to be changed a little; it falls to zero as half a cosine.
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
        """Which micro-batch comes when: epochs of all of them, each in a random order."""
        generator = torch.Generator().manual_seed(self.seed)
        epochs = [torch.randperm(batches, generator=generator) for _ in range(-(-self.steps // batches))]
        return torch.cat(epochs)[: self.steps].tolist()

    def rate_at(self, step: int) -> float:
        """The rate of a step."""
        return self.rate * (1 + math.cos(math.pi * step / self.steps)) / 2


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a block gives for each micro-batch.

    Attributes:
        batches: how many there are.
        wanted: of the dense block on dense hidden states.
        found: of the compressed one on those that arrive; with autograd where the caller has it on.
        root: `L` with `L L^T = G`; `None` is the identity.
    """

    batches: int
    wanted: Callable[[int], Tensor]
    found: Callable[[int], Tensor]
    root: Float[Tensor, "h h"] | None = None

    def errors(self, batch: int) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """What is lacking in a micro-batch, and all that is wanted: sums of squares in float32, or float64 for a block of that."""
        with torch.no_grad():
            wanted = self._weighed(self.wanted(batch))
            power = wanted.square().sum()
        return (wanted - self._weighed(self.found(batch))).square().sum(), power

    @torch.no_grad()
    def error(self) -> float:
        """Of all tokens, relative."""
        lacking, power = zip(*(map(float, self.errors(batch)) for batch in range(self.batches)), strict=True)
        return math.fsum(lacking) / (math.fsum(power) or 1.0)

    def _weighed(self, hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, -2)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return rows if self.root is None else rows @ self.root.to(rows)


def root_of(gradient: Float[Tensor, "h h"] | None) -> Float[Tensor, "h h"] | None:
    """`L` of a second moment of gradients, damped; `None` where there is none, or where no gradient comes back at all."""
    if gradient is None or not bool(gradient.any()):
        return None
    ridge = DAMPING * float(gradient.trace()) / len(gradient)
    identity = torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device)
    root: Tensor = torch.linalg.cholesky(gradient + ridge * identity)
    return root


def check_tunable(dtype: torch.dtype) -> None:
    """Refuse a model that cannot be tuned.

    Raises:
        UsageError: its dtype carries no gradients.
    """
    if dtype not in DTYPES:
        raise UsageError(
            f"the backbone is in {str(dtype).removeprefix('torch.')}, which carries no gradients (in float16 small ones vanish), expected "
            "bfloat16, float32 or float64: set backbone.dtype=bfloat16, or refinement.method=none"
        )


def refine_(
    block: nn.Module, linears: Sequence[nn.Module], outputs: Outputs, refinement: Refinement, *, name: str
) -> None:
    """Tune some layers of a block in place, if that lowers the error of its output; nothing else of the block changes.

    The parameters get tensors of their own, so those that they were made of stay as they are.

    Args:
        block: resident (`mgaa.blocks.offload`), in eval mode.
        linears: of the block; no tensor of theirs is shared with another module.
        name: of the block, for messages.

    Raises:
        NumericalError: an error is not finite; the layers are as they were.
    """
    parameters = [parameter for linear in linears for parameter in linear.parameters()]
    given, before, better = [parameter.detach() for parameter in parameters], outputs.error(), False
    _put_(parameters, [tensor.clone() for tensor in given])
    try:
        with _learning(block, parameters):
            _train_(parameters, outputs, refinement, before**0.5, name)
        better = outputs.error() < before
    finally:
        if not better:
            _put_(parameters, given)


def _put_(parameters: Sequence[nn.Parameter], tensors: Sequence[Tensor]) -> None:
    for parameter, tensor in zip(parameters, tensors, strict=True):
        parameter.data = tensor


def _train_(
    parameters: Sequence[nn.Parameter], outputs: Outputs, refinement: Refinement, way: float, name: str
) -> None:
    """Steps of Adam on copies in float32 or wider; the parameters are these, rounded."""
    masters = [each.detach().to(torch.promote_types(each.dtype, torch.float32), copy=True) for each in parameters]
    sizes = [way * float(each.square().mean().sqrt()) for each in masters]
    adam = torch.optim.Adam([{"params": [each]} for each in masters], eps=_EPSILON)
    for step, batch in enumerate(refinement.order(outputs.batches)):
        for group, size in zip(adam.param_groups, sizes, strict=True):
            group["lr"] = refinement.rate_at(step) * size
        for master, gradient in zip(masters, _slope(parameters, outputs, batch, name), strict=True):
            master.grad = None if gradient is None else gradient.to(master.dtype)
        adam.step()
        with torch.no_grad():
            for parameter, master in zip(parameters, masters, strict=True):
                parameter.copy_(master)


def _slope(parameters: Sequence[nn.Parameter], outputs: Outputs, batch: int, name: str) -> Sequence[Tensor | None]:
    """Of the error of a micro-batch; `None` for an expert that no token of it was sent to."""
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
    """Inside this context autograd follows these parameters of the block alone."""
    before = {parameter: parameter.requires_grad for parameter in block.parameters()}
    try:
        block.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, learns in before.items():
            parameter.requires_grad_(learns)
