"""Several decompositions in flight on one CUDA device.

An eigenproblem of a few thousand rows fills a fraction of a GPU, and the thread that asks for it waits for its end (its error code comes
back to the host). So each decomposition gets a thread and a stream of its own. On the CPU they go one after the other: there, each
uses all cores, and only one holds its matrices in float64. How many are in flight changes no bit, so the memory that is free may decide.
"""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import torch

from mgaa.blocks.hardware import free_memory
from mgaa.decomposition.linalg import Spectrum

STREAMS = 4
"""Decompositions in flight on a device, where it has the memory. A choice, not measured."""


def together(sizes: Collection[int], room: int) -> int:
    """How many decompositions are in flight: as many of the largest as `room` holds at once, up to `STREAMS`, and one in any case.

    Args:
        sizes: bytes that each takes (`mgaa.decomposition.linalg.working_bytes`).
        room: bytes that are free beside the results of all.
    """
    largest = sorted(sizes, reverse=True)[:STREAMS]
    return max(1, sum(total <= room for total in accumulate(largest)))


def in_flight(
    compute: Callable[[str], Spectrum], sizes: Mapping[str, int], devices: Collection[torch.device], *, results: int = 0
) -> dict[str, Spectrum]:
    """`compute` of every name, in order; where `devices` is one CUDA device, several of them at a time (`together`).

    Args:
        compute: reads what the current stream of the caller has made, and returns results on one of `devices`.
        sizes: what to compute, with the bytes that it takes.
        devices: where.
        results: bytes of all results.
    """
    if len(sizes) < 2 or [device.type for device in devices] != ["cuda"]:
        return {name: compute(name) for name in sizes}
    (device,) = devices
    count = together(sizes.values(), free_memory(device) - results)
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
        for tensor in (found.energies, found.basis, *([] if found.dual is None else [found.dual])):
            tensor.record_stream(caller)  # its memory serves no other stream while that of the caller still reads it
        return found

    with ThreadPoolExecutor(count) as threads:
        return dict(zip(sizes, threads.map(beside, sizes), strict=True))
