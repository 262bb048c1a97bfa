"""Memory that is no longer used goes back to the system between steps."""

import ctypes
import gc
from functools import cache
from typing import Any


def give_back() -> None:
    """Free what only cycles hold, and let the C library return its free pages: the next step begins without the holes of the last one."""
    gc.collect()
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Any:
    """`malloc_trim` of the GNU C library; other systems do without."""
    try:
        return ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return None
