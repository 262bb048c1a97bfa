"""A folder that outlives a killed run, so that the next one goes on where it stopped.

Files appear in it under their names when they are whole. They are not forced to the disk one by one, which would cost more than they
save: an operating system that goes on holds what a killed process has written. One that was started anew since may have lost a part
of it, so what it finds here is not trusted but removed.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The path of a draft to write inside this context; behind it the file is there under its name, or as it was before."""
    draft = path.with_name(f".{path.name}")
    yield draft
    os.replace(draft, path)
