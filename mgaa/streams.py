"""Several decompositions in flight on one CUDA device.

An eigenproblem of a few thousand rows fills a fraction of a GPU, and the thread that asks for it waits for its end (its error code comes
back to the host). So each decomposition gets a thread and a stream of its own. On the CPU they go one after the other: there, each
uses all cores, and only one holds its matrices in float64.
"""

from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor

import torch

from mgaa.linalg import Spectrum

STREAMS = 4
"""Decompositions in flight on a device. A choice, not measured."""


def in_flight(
    compute: Callable[[str], Spectrum], names: Collection[str], devices: Collection[torch.device]
) -> dict[str, Spectrum]:
    """`compute` of every name, in order; where `devices` is one CUDA device, up to `STREAMS` of them at a time.

    Args:
        compute: reads what the current stream of the caller has made, and returns results on one of `devices`.
        names: what to compute.
        devices: where.
    """
    if len(names) < 2 or [device.type for device in devices] != ["cuda"]:
        return {name: compute(name) for name in names}
    (device,) = devices
    caller = torch.cuda.current_stream(device)
    torch.linalg.inv(
        torch.ones(1, 1, device=device)
    )  # torch loads its solvers at the first use, which threads may not do

    def beside(name: str) -> Spectrum:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            found = compute(name)
        stream.synchronize()
        for tensor in (found.energies, found.basis):
            tensor.record_stream(caller)  # its memory serves no other stream while that of the caller still reads it
        return found

    with ThreadPoolExecutor(STREAMS) as threads:
        return dict(zip(names, threads.map(beside, names), strict=True))
