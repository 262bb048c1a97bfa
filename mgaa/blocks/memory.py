"""Release of unused memory to the system between blocks and between steps."""

import ctypes
from functools import cache
from typing import Any


def release_memory() -> None:
    """Let the C library return its free pages, so that the next work starts without the fragmentation of its heap."""
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    """Return `malloc_trim` of the GNU C library; `None` on other systems."""
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None
