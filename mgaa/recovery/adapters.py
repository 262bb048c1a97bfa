"""Adapters: updates that learn next to the linears of a model, and their tensors; `mgaa.recovery.attach` attaches and removes them.

An adapter replaces a linear, holds it, and adds an update to its output. The linear stays frozen, the few tensors of the update learn. By
`Plan.method` and `Plan.tune`:

    lora, product     on every linear as a whole: `y = B (A x) + b + s L_B L_A x`              mgaa.recovery.lora
    lora, factors     on each of `A` and `B` of the low-rank ones, and on all others
    diagonals         on the low-rank ones: `y = B (A x) + b + Λ_b B_r Λ_d A_r x`              mgaa.recovery.diagonals

Embeddings, norms, routers and the head are frozen.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Adapter(nn.Module, ABC):
    """A linear and its update."""

    @property
    @abstractmethod
    def learnt(self) -> dict[str, nn.Parameter]:
        """Return the tensors of the update, by a name without dots."""


def tensors_of(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Return the tensors learnt so far, by name, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _parts(adapters)}


@torch.no_grad()
def load_adapters(adapters: Mapping[str, Adapter], tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors that `tensors_of` returned, to continue from them."""
    for name, tensor in _parts(adapters):
        tensor.copy_(tensors[name])


def _parts(adapters: Mapping[str, Adapter]) -> Iterator[tuple[str, nn.Parameter]]:
    return ((f"{name}.{part}", tensor) for name, adapter in adapters.items() for part, tensor in adapter.learnt.items())
