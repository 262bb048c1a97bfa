"""Assignment of GPUs to steps: for the parameter `cuda`, each of the steps that run at once in a process gets a card of its own.

The cache key holds the parameter, so a result does not depend on the card that made it. With more steps than cards, the card with the
fewest steps is shared; no step waits, so there can be no deadlock. A worker process that sees one card (`CUDA_VISIBLE_DEVICES`) has no
choice.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from tasks.cache.placement import Placement


class Pool:
    """Devices by name, each with the number of steps that compute on it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.users = dict.fromkeys(names, 0)
        self.lock = Lock()

    @contextmanager
    def use_device(self) -> Iterator[str]:
        """Use the first of the least used devices inside the block."""
        with self.lock:
            name = min(self.users, key=self.users.__getitem__)
            self.users[name] += 1
        try:
            yield name
        finally:
            with self.lock:
                self.users[name] -= 1


@cache
def list_cards() -> Pool | None:
    """Cards of this process; None if there is at most one, for which `cuda` is enough."""
    import torch

    count = torch.cuda.device_count()
    return Pool([f"cuda:{index}" for index in range(count)]) if count > 1 else None


@contextmanager
def place_arguments(arguments: Mapping[str, Any], pool: Pool | None = None) -> Iterator[dict[str, Any]]:
    """Replace `device="cuda"` in the arguments of a step by a card of its own; everything else stays as it is.

    Args:
        pool: devices to choose from; by default the cards of this process.
    """
    if arguments.get("device") != "cuda" or (devices := pool or list_cards()) is None:
        yield dict(arguments)
        return
    with devices.use_device() as name, use_card(name):
        device = arguments["device"]
        yield {**arguments, "device": device.on(name) if isinstance(device, Placement) else name}


@contextmanager
def use_card(name: str) -> Iterator[None]:
    """Make a card the one that `cuda` means for torch in this thread."""
    if "torch" not in sys.modules or not sys.modules["torch"].cuda.is_available():
        yield
        return
    with sys.modules["torch"].cuda.device(name):
        yield
