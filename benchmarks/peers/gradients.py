"""One backward pass from the calibration loss: the input of every linear layer, and the gradient of its output.

The loss is the sum of the next-token losses in nats, as in training. Parameters get no gradients, so the model stays as it is; what a rule
makes
of the pairs (a gradient of a weight, a moment) it accumulates itself, batch by batch.

Legend: b sequences of a batch, t tokens, n inputs, m outputs of a linear.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

Watch = Callable[[str, Tensor, Tensor], None]
"""A function of the name of a linear layer, its input (b, t, n) and the gradient of its output (b, t, m)."""


def pass_back(
    model: PreTrainedModel, tokens: Int[Tensor, "s t"], names: Sequence[str], watch: Watch, *, batch_size: int = 8
) -> int:
    """Call `watch` for every linear layer in `names` and every batch of calibration sequences; returns the number of predicted tokens."""

    def hook(name: str, _: nn.Module, given: tuple[Any, ...], output: Tensor) -> None:
        x = given[0].detach()
        output.register_hook(lambda gradient: watch(name, x, gradient.detach()))  # type: ignore[no-untyped-call]

    handles = [model.get_submodule(name).register_forward_hook(partial(hook, name)) for name in names]
    try:
        for batch in torch.split(tokens, batch_size):
            embedded = model.get_input_embeddings()(batch).detach().requires_grad_()
            logits = model(inputs_embeds=embedded, use_cache=False).logits[:, :-1]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
            torch.autograd.grad(loss, embedded)
    finally:
        for handle in handles:
            handle.remove()
    return int(tokens[:, 1:].numel())
