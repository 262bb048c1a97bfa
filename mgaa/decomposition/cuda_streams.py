"""Several decompositions in flight on one CUDA device.

An eigenproblem of a few thousand rows fills a fraction of a GPU, and the thread that launches it waits for its end (its error code is read
by the host). So each decomposition gets a thread and a stream of its own. On the CPU they run one after the other: there, each uses all
cores, and only one holds its matrices in float64. The number in flight changes no bit, so it may depend on the free memory.
"""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate

import torch

from mgaa.blocks.hardware import free_memory
from mgaa.decomposition.linalg import Spectrum

STREAMS = 4
"""Maximum number of decompositions in flight on a device, memory permitting. Chosen, not measured."""


def max_concurrent(sizes: Collection[int], room: int) -> int:
    """Return the number of decompositions in flight: as many of the largest as fit into `room`, from one to `STREAMS`.

    Args:
        sizes: bytes of working memory of each (`mgaa.decomposition.linalg.working_bytes`).
        room: bytes that are free besides all results.
    """
    largest = sorted(sizes, reverse=True)[:STREAMS]
    return max(1, sum(total <= room for total in accumulate(largest)))


def map_concurrently(
    compute: Callable[[str], Spectrum], sizes: Mapping[str, int], devices: Collection[torch.device], *, results: int = 0
) -> dict[str, Spectrum]:
    """Run `compute` for every name and return the results in order; on a single CUDA device, several at a time (`max_concurrent`).

    Args:
        compute: reads what the caller's current stream has computed, and returns results on one of `devices`.
        sizes: names to compute, with their bytes of working memory.
        devices: where.
        results: bytes of all results.
    """
    if len(sizes) < 2 or [device.type for device in devices] != ["cuda"]:
        return {name: compute(name) for name in sizes}
    (device,) = devices
    count = max_concurrent(sizes.values(), free_memory(device) - results)
    caller = torch.cuda.current_stream(device)
    torch.linalg.inv(torch.ones(1, 1, device=device))  # torch loads its solvers at first use, which is not thread-safe

    def compute_on_stream(name: str) -> Spectrum:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(caller)
        with torch.cuda.stream(stream):
            spectrum = compute(name)
        stream.synchronize()
        for tensor in (spectrum.energies, spectrum.basis, *([] if spectrum.dual is None else [spectrum.dual])):
            tensor.record_stream(caller)  # keeps its memory from other streams while the caller's still reads it
        return spectrum

    with ThreadPoolExecutor(count) as threads:
        return dict(zip(sizes, threads.map(compute_on_stream, sizes), strict=True))
