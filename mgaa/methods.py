"""A method is a function in a file of its own: the key in the configuration is the file name.

`factors/`, `ratios/` and `ranks/` are folders of methods. The keyword-only arguments of a method's function are its configuration, so
a new method is a new file and nothing else: no registry, no edit elsewhere.
"""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from mgaa.errors import UsageError

FUNCTIONS = {"factors": "metric", "ratios": "allocate", "ranks": "allocate"}
"""Name of the public function in the files of each section."""


def available(section: str) -> list[str]:
    """Names of the methods of a section (`factors`, `ratios` or `ranks`)."""
    return sorted(path.stem for path in (Path(__file__).parent / section).glob("[a-z]*.py"))


def method(section: str, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The function of method `name` after a check of its options.

    Raises:
        UsageError: there is no such method, or it does not take an option (the valid ones are listed).
    """
    if name not in available(section):
        raise UsageError(f"{section}.method is {name!r}, expected one of {', '.join(available(section))}")
    function: Callable[..., Any] = getattr(import_module(f"mgaa.{section}.{name}"), FUNCTIONS[section])
    valid = [key for key, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(set(options) - set(valid)):
        raise UsageError(
            f"{section}.{unknown[0]} is not an option of the method {name!r}; it takes {', '.join(valid) or 'none'}"
        )
    return function
