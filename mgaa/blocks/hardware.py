"""Resources of this machine: free memory of a device and of the host, disk space, and rates of computing, reading and writing."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Return the bytes that a process can still allocate on the device; on the CPU, host memory within the limits of its container.

    On CUDA, memory that torch caches for its next tensors counts as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_available_memory(), _container_memory())


def free_disk(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free


def _available_memory() -> int:
    """Return free and reclaimable memory (Linux), otherwise all memory of the machine."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_memory() -> int:
    """Return the bytes that the limit of a container leaves; pages of files do not count, because they can be dropped."""
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        kept = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        files = next(int(line.split()[1]) for line in kept if line.startswith("file "))
    except (OSError, StopIteration, ValueError):
        return 2**63
    return 2**63 if limit == "max" else int(limit) - used + files


@dataclass(frozen=True)
class Rates:
    """Throughput of a machine, per second.

    Attributes:
        forward: operations of matrix products in the dtype of the model.
        double: of matrix products in float64.
        eigen: `n^3` of symmetric eigenproblems of width n in float64.
        read, write: bytes from and to the disk.
    """

    forward: float
    double: float
    eigen: float
    read: float
    write: float


def measure_rates(device: torch.device, dtype: torch.dtype, folder: Path, *, size: int = 1024) -> Rates:
    """Measure the rates here and now, in a second or two: the best of three of each.

    Args:
        folder: on the disk to measure.
        size: width of the matrices; small ones are slower than those of large models.
    """
    low = torch.randn(size, size, device=device).to(dtype)
    high = low.double()
    symmetric = high @ high.T
    products = 2.0 * size**3
    with tempfile.TemporaryDirectory(
        dir=next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    ) as place:
        path, content = Path(place) / "rate", os.urandom(2**20) * 64

        def write() -> None:
            with path.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        return Rates(
            forward=products / _seconds(lambda: low @ low, device),
            double=products / _seconds(lambda: high @ high, device),
            eigen=float(size) ** 3 / _seconds(lambda: torch.linalg.eigh(symmetric), device),
            write=len(content) / _seconds(write, device),
            read=len(content) / _seconds(path.read_bytes, device),
        )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    best = float("inf")
    for _ in range(3):
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
