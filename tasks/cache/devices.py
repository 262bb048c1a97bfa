"""Which card a step computes on: the parameter says `cuda`, and each of the steps that run at once in a process gets a card of its own.

The stage key holds the parameter, so a result is the same whichever card made it. With more steps than cards the card with the fewest steps
is shared; nobody waits, so nothing can wait for itself. A worker process that sees one card (`CUDA_VISIBLE_DEVICES`) has no choice.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

from tasks.cache.placement import Where


class Pool:
    """Devices by name, each with the number of steps that compute on it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.users = dict.fromkeys(names, 0)
        self.lock = Lock()

    @contextmanager
    def taken(self) -> Iterator[str]:
        """The first of the least used devices, in use for the block."""
        with self.lock:
            name = min(self.users, key=self.users.__getitem__)
            self.users[name] += 1
        try:
            yield name
        finally:
            with self.lock:
                self.users[name] -= 1


@cache
def cards() -> Pool | None:
    """The cards of this process; none where there is one or none, and `cuda` says enough."""
    import torch

    count = torch.cuda.device_count()
    return Pool([f"cuda:{index}" for index in range(count)]) if count > 1 else None


@contextmanager
def placed(arguments: Mapping[str, Any], pool: Pool | None = None) -> Iterator[dict[str, Any]]:
    """The arguments of a step with a card of its own in the place of `device="cuda"`; everything else as it is.

    Args:
        pool: the devices to choose from; by default the cards of this process.
    """
    if arguments.get("device") != "cuda" or (found := pool or cards()) is None:
        yield dict(arguments)
        return
    with found.taken() as name, current(name):
        where = arguments["device"]
        yield {**arguments, "device": where.on(name) if isinstance(where, Where) else name}


@contextmanager
def current(name: str) -> Iterator[None]:
    """Make a card the one that torch means by `cuda` in this thread."""
    if "torch" not in sys.modules or not sys.modules["torch"].cuda.is_available():
        yield
        return
    with sys.modules["torch"].cuda.device(name):
        yield
