"""What a model adds to the stream between two blocks, where the blocks do not see it.

Qwen3-VL adds features of inner blocks of its vision tower to the tokens of images, behind the first blocks of the decoder (DeepStack, Meng
et al. 2024, https://arxiv.org/abs/2406.04334; models/qwen3_vl/modeling_qwen3_vl.py, `_deepstack_process`).
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Addition:
    """What a model adds to some rows of the hidden states between two blocks."""

    mask: Bool[Tensor, "*rows"]
    rows: Float[Tensor, "k h"]

    @staticmethod
    def of(difference: Float[Tensor, "*rows h"]) -> "Addition":
        """The rows of a difference that are not zero."""
        mask = difference.ne(0).any(dim=-1)
        return Addition(mask, difference[mask])

    def to(self, hidden: Float[Tensor, "*rows h"]) -> Float[Tensor, "*rows h"]:
        """The hidden states with the rows added, which are where they were."""
        hidden = hidden.clone()
        hidden[self.mask] = hidden[self.mask] + self.rows
        return hidden
