"""A method is a function in a file of its own: the key in the configuration is the file name.

`factors/`, `ratios/` and `ranks/` are folders of methods. The keyword-only arguments of a method's function are its configuration, so
a new method is a new file and nothing else: no registry, no edit elsewhere. What a file may say beside is told where its section is
(`mgaa.ranks`: a function `check`, constants `VERBATIM` and `GLOBAL`).
"""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from mgaa.errors import UsageError

FUNCTIONS = {"factors": "metric", "ratios": "allocate", "ranks": "allocate"}
"""Name of the public function in the files of each section."""


def available_methods(section: str) -> list[str]:
    """Names of the methods of a section (`factors`, `ratios` or `ranks`)."""
    return sorted(path.stem for path in (Path(__file__).parent / section).glob("[a-z]*.py"))


def load_method(section: str, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The function of method `name` after a check of its options.

    Raises:
        UsageError: there is no such method, it does not take an option (the valid ones are listed), or it needs one more.
    """
    function: Callable[..., Any] = getattr(_module(section, name), FUNCTIONS[section])
    taken = {key: p for key, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    if unknown := sorted(set(options) - set(taken)):
        raise UsageError(
            f"{section}.{unknown[0]} is not an option of the method {name!r}; it takes {', '.join(taken) or 'none'}"
        )
    if missing := [key for key, p in taken.items() if p.default is p.empty and key not in options]:
        raise UsageError(
            f"{section}.{missing[0]} is missing: the method {name!r} needs it; it takes {', '.join(taken)}"
        )
    return function


def check_method(section: str, name: str, *arguments: Any, **options: Any) -> None:
    """Let method `name` itself refuse what it cannot do, if its file has a function `check`."""
    own: Callable[..., None] | None = getattr(_module(section, name), "check", None)
    if own is not None:
        own(*arguments, **options)


def method_constant(section: str, name: str, key: str, default: Any) -> Any:
    """What the file of method `name` says under `key`, such as `VERBATIM`."""
    return getattr(_module(section, name), key, default)


def _module(section: str, name: str) -> ModuleType:
    if name not in available_methods(section):
        raise UsageError(f"{section}.method is {name!r}, expected one of {', '.join(available_methods(section))}")
    return import_module(f"mgaa.{section}.{name}")
