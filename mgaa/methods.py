"""A method is a function in a file of its own: the key in the configuration is the file name.

`factors/`, `ratios/` and `ranks/` are folders of methods. The keyword-only arguments of a method's function are its configuration, so a
new method is a new file and nothing else: no registry, no edit elsewhere. A file may also have `TRAITS = Traits(...)`, which tells the
stages how to treat the method, and a function `check`, by which a rule of `ranks/` refuses a model (`mgaa.ranks`).
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

from mgaa.errors import UsageError

FUNCTIONS = {"factors": "metric", "ratios": "allocate", "ranks": "allocate"}
"""Name of the public function in the files of each section."""

_one_parser = Lock()
"""CPython 3.11 counts the depth of the syntax tree per interpreter, not per thread: two that parse at once end in a SystemError."""


@dataclass(frozen=True)
class Traits:
    """Properties of a method that the stages depend on.

    Attributes:
        centred: of a factorizer: its metric is centred, so that low rank adds biases.
        grouped: of a factorizer: its metric depends on which sequences form a group.
        gradients: of a factorizer: it needs the second moments of output gradients (`mgaa.statistics.gradients`).
        whole_model: of a rank rule: it allocates all matrices of the model at once, whatever the ratios, and nothing is refilled.
        verbatim: of a rank rule: its roundings are those of a published method, and nothing is refilled.
    """

    centred: bool = False
    grouped: bool = False
    gradients: bool = False
    whole_model: bool = False
    verbatim: bool = False


def available_methods(section: str) -> list[str]:
    """Names of the methods of a section (`factors`, `ratios` or `ranks`)."""
    return sorted(path.stem for path in (Path(__file__).parent / section).glob("[a-z]*.py"))


def parse_file(path: Path) -> ast.Module:
    """The syntax tree of a file, from any thread."""
    return parse(path.read_bytes())


def parse(code: bytes) -> ast.Module:
    """The syntax tree of the text of a module, from any thread."""
    with _one_parser:
        return ast.parse(code)


@cache
def method_syntax(section: str, name: str) -> ast.Module:
    """The syntax tree of a method's file: what it declares can be read without importing torch.

    Raises:
        UsageError: the method is unknown.
    """
    _check_name(section, name)
    return parse_file(Path(__file__).parent / section / f"{name}.py")


@cache
def method_traits(section: str, name: str) -> Traits:
    """The `TRAITS` of a method, written as literals; all of them are false where its file has none.

    Raises:
        UsageError: the method is unknown.
    """
    for node in method_syntax(section, name).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="TRAITS")], value=ast.Call(keywords=keywords)):
                return Traits(**{str(each.arg): ast.literal_eval(each.value) for each in keywords})
    return Traits()


def load_method(section: str, name: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The function of a method, after a check of the names of its options.

    Raises:
        UsageError: the method or an option is unknown, or a required option is missing; the message lists the valid ones.
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
    """Call the function `check` of a method, if its file has one."""
    own: Callable[..., None] | None = getattr(_module(section, name), "check", None)
    if own is not None:
        own(*arguments, **options)


def _module(section: str, name: str) -> ModuleType:
    _check_name(section, name)
    return import_module(f"mgaa.{section}.{name}")


def _check_name(section: str, name: str) -> None:
    if name not in available_methods(section):
        raise UsageError(f"{section}.method is {name!r}, expected one of {', '.join(available_methods(section))}")
