"""Models that a process keeps in memory between steps."""

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")


class LoadedModels(Generic[T]):
    """The latest model on each device, with what identifies it.

    One model is loaded at a time: transformers keeps state in globals while it loads, and steps run in several threads.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._models: dict[str, tuple[Hashable, T]] = {}

    def get(self, device: str, identity: Hashable, load: Callable[[], T]) -> T:
        """The model of this identity; another one on the device is dropped first, because there may be no room for both."""
        with self._lock:
            if device not in self._models or self._models[device][0] != identity:
                self._models.pop(device, None)
                self._models[device] = identity, load()
            return self._models[device][1]

    def clear(self) -> None:
        """Drop all models."""
        with self._lock:
            self._models.clear()
