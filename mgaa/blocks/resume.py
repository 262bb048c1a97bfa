"""A folder that outlives a killed run, so that the next one resumes where it stopped.

Files appear in it under their names once they are complete. They are not forced to the disk one by one, which would cost more than it
saves: as long as the operating system runs, it keeps what a killed process has written. After a reboot some of it may be lost, so the
contents are removed rather than trusted.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def resume_folder(folder: Path) -> Path:
    """Create the folder if necessary, and empty it if it was written before the last boot."""
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
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a draft path to write within this context; on success it becomes `path`, otherwise `path` stays unchanged."""
    draft = path.with_name(f".{path.name}")
    yield draft
    os.replace(draft, path)
