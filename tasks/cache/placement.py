"""Placement of a step: its device, and how much of the model it holds there.

The device is part of a cache key. The other fields change no bit of any result (`mgaa.blocks.offload`, `mgaa.blocks.hidden_states`),
so they are not.
"""

from typing import Literal

Stream = Literal["auto", "always", "never"]
Hidden = Literal["auto", "device", "host", "disk"]

ROOM = 0.5
"""Share of the free memory that the weights of a model may occupy; larger models keep their blocks in their files."""


class Placement(str):
    """A device in the form that steps take: `cpu`, `cuda`, `cuda:1`.

    Attributes:
        stream: whether the blocks of a model stay in their files until they are needed.
        hidden: where the hidden states of calibration and evaluation are kept.
    """

    stream: Stream
    hidden: Hidden

    def __new__(cls, device: str, stream: Stream = "auto", hidden: Hidden = "auto") -> "Placement":
        """Create a device; fields that are not given are `auto`."""
        where = super().__new__(cls, device)
        where.stream, where.hidden = stream, hidden
        return where

    def on(self, device: str) -> "Placement":
        """The same placement on another device."""
        return Placement(device, self.stream, self.hidden)


def should_stream(device: str, weights: int) -> bool:
    """Tell whether a model's blocks stay in their files, given the bytes of its weights."""
    import torch

    from mgaa.blocks.hardware import free_memory

    wanted = device.stream if isinstance(device, Placement) else "auto"
    return wanted == "always" or (wanted == "auto" and weights > ROOM * free_memory(torch.device(device)))


def place_of_hidden(device: str, size: int) -> Literal["device", "host", "disk"]:
    """Choose where hidden states of `size` bytes are kept: on the device, else on the host, if they need at most a quarter of what is free
    there, else on disk.
    """
    import torch

    from mgaa.blocks.hardware import free_memory

    wanted = device.hidden if isinstance(device, Placement) else "auto"
    if wanted != "auto":
        return wanted
    if size <= 0.25 * free_memory(torch.device(device)):
        return "device"
    return "host" if size <= 0.25 * free_memory(torch.device("cpu")) else "disk"
