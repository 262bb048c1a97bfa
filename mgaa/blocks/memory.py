"""Memory that is no longer used goes back to the system between blocks and between steps."""

import ctypes
from functools import cache
from typing import Any


def give_back() -> None:
    """Let the C library return its free pages: what comes next begins without the holes that its heap has kept."""
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    """`malloc_trim` of the GNU C library; other systems do without."""
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None
