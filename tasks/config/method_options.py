"""The options of a method: the keyword-only arguments of its function, read from its file.

A section that selects a method (`factors`, `ratios`, `ranks`) holds the method's options along with its own keys. They are read from the
syntax tree of `mgaa/<section>/<method>.py`, so that checking parameters does not import torch. Options in the file that belong to another
method of the section are ignored, so that `ratios.method=uniform` needs no second edit; given on the command line they are an error, since
they would have no effect. An option that accepts a `Path` is a file, which steps identify by its content (`tasks.cache.stage.File`).
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from mgaa.errors import UsageError
from mgaa.methods import FUNCTIONS, available_methods, method_syntax
from tasks.cache.stage import File
from tasks.config.messages import expectation, suggest

SECTIONS = {
    "factors": {"method"},
    "ratios": {"method", "compression", "band", "residual"},
    "ranks": {"method", "multiple", "spectrum", "objective", "profile", "tokens", "device"},
}
"""The sections that select a method, with the keys that all their methods share."""
TYPES = {
    "Path": str,
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list": list,
    "Literal": Literal,
    "None": None,
}


@dataclass(frozen=True)
class Option:
    """A keyword-only argument of a method; `default` is `...` if it is required, `file` tells that it is the path of a file."""

    type: Any
    default: Any
    file: bool


def select_options(section: str, values: Mapping[str, Any], by_hand: set[str]) -> dict[str, Any]:
    """Separate the selected method's `options`, with defaults filled in, from the keys of the section; raises `UsageError`."""
    shared = SECTIONS[section]
    known = {method: method_options(section, method) for method in available_methods(section)}
    chosen = values.get("method")
    if not isinstance(chosen, str) or chosen not in known:
        raise UsageError(f"{section}.method is {chosen!r}: expected one of {', '.join(known)}{suggest(chosen, known)}")
    own = known[chosen]
    for name in sorted(values.keys() - shared - own.keys()):
        takers = [method for method, theirs in known.items() if name in theirs]
        if name in by_hand or not takers:
            valid = sorted(shared | own.keys())
            whose = f" (it belongs to {', '.join(takers)})" if takers else ""
            raise UsageError(
                f"{section}.{name} is unknown to the method {chosen!r}{whose}: expected one of {', '.join(valid)}{suggest(name, valid)}"
            )
    filled = {name: option_value(section, name, option, values) for name, option in own.items()}
    return {**{name: values[name] for name in values.keys() & shared}, "options": filled}


def option_value(section: str, name: str, option: Option, values: Mapping[str, Any]) -> Any:
    """The value of an option, checked against its type, or the method's default."""
    if name in values:
        adapter = TypeAdapter(option.type, config=ConfigDict(strict=True, allow_inf_nan=False, str_min_length=1))
        try:
            found = adapter.validate_python(values[name])
            return File(found) if option.file else found
        except ValidationError as error:
            expected = " or ".join(dict.fromkeys(expectation(problem) for problem in error.errors()))
            message = f"{section}.{name} is {values[name]!r}: expected {expected} (option of {values['method']})."
            raise UsageError(message) from None
    if option.default is ...:
        raise UsageError(f"{section}.{name} is missing: the method {values['method']!r} needs it.")
    return option.default


@cache
def method_options(section: str, method: str) -> dict[str, Option]:
    """The options of a method, in the order of its signature."""
    for node in method_syntax(section, method).body:
        if isinstance(node, ast.FunctionDef) and node.name == FUNCTIONS[section]:
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            return {
                argument.arg: Option(
                    plain_type(argument.annotation),
                    ... if default is None else ast.literal_eval(default),
                    file="Path" in names_in(argument.annotation),
                )
                for argument, default in pairs
            }
    raise UsageError(f"mgaa/{section}/{method}.py is not a method: expected a function {FUNCTIONS[section]!r} in it.")


def plain_type(annotation: ast.expr | None) -> Any:
    """The type of an option if YAML can express it; the method checks anything else."""
    if annotation is None or not names_in(annotation) <= TYPES.keys():
        return Any
    return eval(compile(ast.Expression(annotation), "<annotation>", "eval"), {"__builtins__": {}}, TYPES)


def names_in(annotation: ast.expr | None) -> set[str]:
    """The names that occur in a type annotation."""
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)} if annotation else set()


def align_sections(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Align the sections: ranks that are read from a file bring the ratios of that file.

    Args:
        values: all sections.
        given: those of the command line.

    Raises:
        UsageError: an option of level 1 on the command line would have no effect.
    """
    ratios, ranks, by_hand = (
        each if isinstance(each, dict) else {}
        for each in (values.get("ratios"), values.get("ranks"), given.get("ratios"))
    )
    if ranks.get("method") != "file" or "path" not in ranks or ratios.get("method") == "file":
        return dict(values)
    if idle := sorted(by_hand.keys() - {"compression", "band"}):
        raise UsageError(
            f"ratios.{idle[0]} has no effect with ranks.method=file, whose ranks are those of the file: leave it out, "
            "or take another ranks.method."
        )
    kept = {name: ratios[name] for name in ratios.keys() & {"compression"}} | {"band": by_hand.get("band")}
    same = {name: ranks[name] for name in ranks.keys() & {"path", "model"}}
    return {**values, "ratios": {"method": "file", **kept, **same}}


def options_reference() -> Iterator[str]:
    """Lines of `--help` about methods and their options."""
    for section in SECTIONS:
        for method in available_methods(section):
            tree = method_syntax(section, method)
            yield f"{section}.method={method}  {(ast.get_docstring(tree) or '').partition(chr(10))[0]}"
            for name, option in method_options(section, method).items():
                yield f"  {section}.{name}, {'needed' if option.default is ... else f'by default {option.default}'}"
