"""A folder that outlives a killed run, so that the next one goes on where it stopped.

Files appear in it under their names when they are whole. They are not forced to the disk one by one, which would cost more than they
save: an operating system that goes on holds what a killed process has written. One that was started anew since may have lost a part
of it, so what it finds here is not trusted but removed.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def taken_up(folder: Path) -> Path:
    """The folder, made if need be; what is in it was written since the machine was started."""
    folder.mkdir(parents=True, exist_ok=True)
    now = _BOOT.read_text() if _BOOT.exists() else ""
    mark = folder / "boot"
    if not now or not mark.exists() or mark.read_text() != now:
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()
        mark.write_text(now)
    return folder


def write_whole(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file that appears whole or not at all."""
    draft = path.with_name(f".{path.name}")
    save_file(dict(tensors), draft, metadata=None if metadata is None else dict(metadata))
    os.replace(draft, path)
