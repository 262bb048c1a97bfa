"""Where a step computes, and how much of the model it holds there.

The device is part of a stage key. What else is said here changes no bit of any result (`mgaa.blocks.offload`, `mgaa.blocks.hidden_states`),
so it is not.
"""

from typing import Literal

Stream = Literal["auto", "always", "never"]
Hidden = Literal["auto", "device", "host", "disk"]

ROOM = 0.5
"""Share of the free memory that the weights of a model may take before its blocks stay in their files."""


class Where(str):
    """A device, as steps take it: `cpu`, `cuda`, `cuda:1`.

    Attributes:
        stream: whether the blocks of a model stay in their files until they are needed.
        hidden: where the hidden states of calibration and evaluation wait.
    """

    stream: Stream
    hidden: Hidden

    def __new__(cls, device: str, stream: Stream = "auto", hidden: Hidden = "auto") -> "Where":
        """A device with what is not said as `auto`."""
        where = super().__new__(cls, device)
        where.stream, where.hidden = stream, hidden
        return where

    def on(self, device: str) -> "Where":
        """The same on another device."""
        return Where(device, self.stream, self.hidden)


def streams(device: str, weights: int) -> bool:
    """Whether the blocks of a model with so many bytes of weights stay in their files."""
    import torch

    from mgaa.blocks.hardware import free_memory

    wanted = device.stream if isinstance(device, Where) else "auto"
    return wanted == "always" or (wanted == "auto" and weights > ROOM * free_memory(torch.device(device)))


def place_of_hidden(device: str, size: int) -> Literal["device", "host", "disk"]:
    """Where hidden states of so many bytes wait: on the device if they take a quarter of what is free there, else on the host, else on
    the disk."""
    import torch

    from mgaa.blocks.hardware import free_memory

    wanted = device.hidden if isinstance(device, Where) else "auto"
    if wanted != "auto":
        return wanted
    if size <= 0.25 * free_memory(torch.device(device)):
        return "device"
    return "host" if size <= 0.25 * free_memory(torch.device("cpu")) else "disk"
