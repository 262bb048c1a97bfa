"""What this machine has: memory that is free, of a device, of the host, and room on a disk."""

import os
import shutil
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still get on the device; on the CPU, of the host, within the limits of its container."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_available(), _container())


def free_disk(folder: Path) -> int:
    """Bytes that are free on the disk of a folder, which need not be there yet."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free


def _available() -> int:
    """Free and reclaimable memory (Linux), else that of the machine."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container() -> int:
    """What the limit of a container leaves; pages of files do not count, for they can be dropped."""
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        kept = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        files = next(int(line.split()[1]) for line in kept if line.startswith("file "))
    except (OSError, StopIteration, ValueError):
        return 2**63
    return 2**63 if limit == "max" else int(limit) - used + files
