"""Additions of a model to the hidden states between two blocks, which the blocks do not receive as arguments.

Qwen3-VL adds features of inner blocks of its vision tower to the image tokens after the first blocks of the decoder (DeepStack, Meng et al.
2024, https://arxiv.org/abs/2406.04334; models/qwen3_vl/modeling_qwen3_vl.py, `_deepstack_process`).
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Addition:
    """Addition to some rows of the hidden states between two blocks."""

    mask: Bool[Tensor, "*rows"]
    rows: Float[Tensor, "k h"]

    @staticmethod
    def of(difference: Float[Tensor, "*rows h"]) -> "Addition":
        """Collect the non-zero rows of a difference."""
        mask = difference.ne(0).any(dim=-1)
        return Addition(mask, difference[mask])

    def add_to(self, hidden: Float[Tensor, "*rows h"]) -> Float[Tensor, "*rows h"]:
        """Return the hidden states with the rows added, on their device."""
        hidden = hidden.clone()
        hidden[self.mask] = hidden[self.mask] + self.rows
        return hidden
