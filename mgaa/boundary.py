"""Where other libraries are called on what a user gave: whatever they raise becomes one error of ours, with the cause in its line.

A config, a tokenizer or a template can make transformers and what it stands on fail in any way: assertions, missing packages, recursion,
panics of Rust. No list of classes is complete, so everything is caught, but around calls of other libraries alone: a mistake of ours keeps
its traceback.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from traceback import format_exception_only
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from mgaa.errors import InputError, MgaaError, ResourceError
from mgaa.masking import masked

LONGEST = 400
"""Characters of a cause; some messages of transformers list every model that it has."""
_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


@contextmanager
def translate_errors(
    failed: str, remedy: str, *, kind: type[MgaaError] = InputError, passing: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn whatever is raised inside into `kind`: "`failed` (cause): `remedy`"; memory that ran out into a `ResourceError`.

    Errors of ours, those in `passing` and interrupts pass as they are.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, (MgaaError, *passing)) or not is_failure(error):
            raise
        if is_out_of_memory(error):
            raise ResourceError(
                f"{failed} ({describe_cause(error)}): give it more memory, or a smaller model"
            ) from error
        raise kind(f"{failed} ({describe_cause(error)}): {remedy}") from error


def is_failure(error: BaseException) -> bool:
    """Whether this is a failure: not an interrupt or an exit, but a panic of Rust, which Python knows as no `Exception`."""
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the process or a device has run out of memory, however that is told."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def via_proxy(url: str) -> str:
    """The proxy that the environment sets before a URL, as the middle of a message; nothing where there is none."""
    parts, found = urlsplit(url), getproxies()
    proxy = found.get(parts.scheme) or found.get("all")
    if proxy is None or proxy_bypass(parts.hostname or ""):
        return ""
    return f" through the proxy {masked(proxy)} (see HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY)"


def describe_cause(error: BaseException) -> str:
    """The kind of an error and its message, in one line that can be written anywhere."""
    said = shorten(" ".join(format_exception_only(error)), LONGEST, placeholder=" ...")
    return said.encode("utf-8", "backslashreplace").decode("utf-8")
