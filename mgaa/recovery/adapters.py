"""What learns beside the linears of a model, and how it is read out; attach.py puts it in and takes it away.

An adapter stands in the place of a linear, holds it, and adds an update to what it computes. The linear stays frozen, the few
tensors of the update learn. By `Plan.method` and `Plan.tune`:

    lora, product     beside every linear as a whole: `y = B (A x) + b + s L_B L_A x`           lora.py
    lora, factors     beside each of `A` and `B` of the low-rank ones, and beside all others
    diagonals         beside the low-rank ones: `y = B (A x) + b + Λ_b B_r Λ_d A_r x`           diagonals.py

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
        """The tensors of the update, by a name without dots."""


def tensors_of(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """What was learnt so far, by name, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in _parts(adapters)}


@torch.no_grad()
def fill(adapters: Mapping[str, Adapter], tensors: Mapping[str, Tensor]) -> None:
    """Go on from what `tensors_of` gave."""
    for name, tensor in _parts(adapters):
        tensor.copy_(tensors[name])


def _parts(adapters: Mapping[str, Adapter]) -> Iterator[tuple[str, nn.Parameter]]:
    return ((f"{name}.{part}", tensor) for name, each in adapters.items() for part, tensor in each.learnt.items())
