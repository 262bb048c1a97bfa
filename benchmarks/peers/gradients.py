"""One pass back from the calibration loss: what goes into every linear, and the gradient of what comes out.

The loss is the sum of the next-token losses in nats, as in training. Parameters get no gradients, so the model stays as it is; what a rule makes
of the pairs (a gradient of a weight, a moment) it sums itself, a batch at a time.

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
"""Takes the name of a linear, its input (b, t, n) and the gradient of its output (b, t, m)."""


def pass_back(
    model: PreTrainedModel, tokens: Int[Tensor, "s t"], names: Sequence[str], watch: Watch, *, batch_size: int = 8
) -> int:
    """Call `watch` for every linear in `names` and every batch of calibration sequences; returns how many tokens were predicted."""

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
