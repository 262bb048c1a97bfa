"""The boundary to other libraries: whatever they raise on user input becomes one error of ours, with the cause in its line.

A config, a tokenizer or a template can make transformers and its dependencies fail in any way: assertions, missing packages, recursion,
Rust panics. No list of classes is complete, so everything is caught, but only around calls of other libraries: a bug of ours keeps its
traceback.
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
"""Maximum length of a cause; some messages of transformers list every model that it has."""
_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)


@contextmanager
def translate_errors(
    failed: str, remedy: str, *, kind: type[MgaaError] = InputError, passing: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn whatever is raised inside into `kind`: "`failed` (cause): `remedy`"; running out of memory becomes a `ResourceError`.

    Errors of ours, those in `passing`, and interrupts pass unchanged.
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
    """Return whether an error is a failure: not an interrupt or an exit, but including a Rust panic, which is no `Exception` in Python."""
    return isinstance(error, Exception) or type(error).__module__ == "pyo3_runtime"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the process or a device has run out of memory, however the library reports it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def via_proxy(url: str) -> str:
    """Name the proxy that the environment sets for a URL, as the middle of a message; empty where there is none."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy is None or proxy_bypass(parts.hostname or ""):
        return ""
    return f" through the proxy {masked(proxy)} (see HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY)"


def describe_cause(error: BaseException) -> str:
    """Describe the kind of an error and its message in one line that is safe to print anywhere."""
    cause = shorten(" ".join(format_exception_only(error)), LONGEST, placeholder=" ...")
    return cause.encode("utf-8", "backslashreplace").decode("utf-8")
