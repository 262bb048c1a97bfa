"""torch's default state for the duration of a call, whatever the caller has set.

Inside `torch.autocast` statistics would be rounded to half precision, inside `inference_mode` factors could never be trained, another
default dtype or device would change every intermediate tensor, and a compiled module would be recompiled for each forward that replaces its
own. A result must not depend on where in a program the library is called, so all of these are suspended.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

_DTYPE, _DEVICE = torch.float32, torch.device("cpu")
"""Default dtype and device of new tensors in a fresh interpreter."""


@contextmanager
def default_torch_state(*models: nn.Module) -> Iterator[None]:
    """Within this context torch has its default state; afterwards the former state is restored.

    Gradients are on, inference mode and autocast are off, and `model.compile` has no effect on these models.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != _DEVICE:
            stack.enter_context(_DEVICE)
        if torch.get_default_dtype() != _DTYPE:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(_DTYPE)
        if any(module._compiled_call_impl is not None for model in models for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield
