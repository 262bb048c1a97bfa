"""Values of overrides, converted by the type of their key.

    output.checkpoint=models/run #2      strings are taken as typed, whatever they look like: no, 007, 12:30, [x], ${x}
    registry.model=null                  null means no value where a key allows it
    registry.model="null"                a quoted string is read as in YAML, escapes included
    ratios.compression=3e-1              numbers are decimal; true, yes, on and false, no, off are switches
    evaluation.tasks=[a, no, 007]        lists and sections are YAML, with every value converted by its own type

Anything else is left as typed, for validation to refuse and quote.
"""

import re
from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from mgaa.errors import UsageError
from mgaa.methods import available_methods
from tasks.config.messages import fields, is_model
from tasks.config.method_options import SECTIONS, method_options
from tasks.config.sections.section import Method

Kinds = set[Any]
"""The types that a value may have: str, int, float, bool, NoneType, list, dict, a section; a `Literal` counts as the type of its values."""

_PRESETS = ("cases", "methods")
"""Keys with named entries that hold sections."""
_QUOTED = re.compile(r"""\s*("([^"\\]|\\.)*"|'([^']|'')*')\s*""", re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_DOTTED = re.compile(r"[+-]?\.(inf|nan)", re.IGNORECASE)
_SWITCH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse_value(text: str, path: Sequence[str], model: type[BaseModel], override: str) -> Any:
    """Convert the value of an override.

    Args:
        text: everything after the first `=`.
        path: the key.
        model: of the parameters.
        override: as typed, for messages.

    Raises:
        UsageError: a list, section or quoted string that is not valid YAML, or is followed by more text.
    """
    kinds = kinds_at(path, model)
    structured = any(is_model(kind) or kind in (list, dict) for kind in kinds)
    if not structured and not _QUOTED.fullmatch(text):
        return parse_scalar(text, kinds)
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None or (isinstance(node, yaml.ScalarNode) and not node.style):
            return parse_scalar(text, kinds)
        if rest := text[node.end_mark.index :].rstrip():
            raise UsageError(
                f"{override!r} ends at {text[: node.end_mark.index].strip()}, and {rest!r} would be lost: leave it out, or put quotes "
                "around the text that it belongs to."
            )
        return plain_value(node, path, model)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"{override!r} cannot be read: {reason}. Expected YAML, such as '[a, b]' or '{{method: svd}}'."
        ) from error


def plain_value(node: yaml.Node, path: Sequence[str], model: type[BaseModel]) -> Any:
    """Convert a YAML node to a plain value, each scalar by the type of its own key."""
    if isinstance(node, yaml.SequenceNode):
        return [plain_value(inner, [*path, str(index)], model) for index, inner in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return str(node.value) if node.style else parse_scalar(str(node.value), kinds_at(path, model))
    found: dict[str, Any] = {}
    for name, inner in node.value:
        if not isinstance(name, yaml.ScalarNode):
            raise ValueError(f"{name.tag.rpartition(':')[2]} is no name of a key")
        if name.value in found:
            raise ValueError(f"{name.value!r} stands there twice")
        found[name.value] = plain_value(inner, [*path, name.value], model)
    return found


def parse_scalar(text: str, kinds: Kinds) -> Any:
    """Convert a string to the first of these types that it fits, or leave it."""
    word = text.strip().lower()
    if (word == "null" and str not in kinds) or (text == "null" and NoneType in kinds):
        return None
    if bool in kinds and word in _SWITCH:
        return _SWITCH[word]
    found = parse_number(text.strip(), kinds)
    return text if found is None else found


def parse_number(text: str, kinds: Kinds) -> int | float | None:
    """Convert a string to a number if it is decimal and these types include numbers."""
    try:
        if kinds & {int, float} and _INTEGER.fullmatch(text):
            return int(text)
        if float in kinds and text.isascii():
            return float(text.replace(".", "") if _DOTTED.fullmatch(text) else text)
    except ValueError:
        pass
    return None


def kinds_at(path: Sequence[str], model: type[BaseModel]) -> Kinds:
    """The types of a key; str for an unknown one."""
    if path[0] in _PRESETS and len(path) > 1:
        path = path[2:]
    found: list[Any] = [model]
    for index, name in enumerate(path):
        found = [each for kind in found for each in kinds_inside(kind, name, path[:index])]
    return {kind if is_model(kind) else get_origin(kind) or kind for kind in found} or {str}


def kinds_inside(kind: Any, name: str, above: Sequence[str]) -> list[Any]:
    """The types of a member of a section or list."""
    if get_origin(kind) is list and name.isdigit():
        return list(branches(get_args(kind)[0]))
    if not is_model(kind):
        return []
    if name in fields(kind):
        return list(branches(fields(kind)[name].annotation))
    section = next((part for part in above if part in SECTIONS), None)
    if section is None or not issubclass(kind, Method):
        return []
    taken = [method_options(section, method) for method in available_methods(section)]
    return [each for known in taken if name in known for each in branches(known[name].type)]


def branches(annotation: Any) -> Iterator[Any]:
    """The alternatives of a type: members of a union, types of a `Literal`, the type inside `Annotated`."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from branches(each)
    elif origin is Annotated:
        yield from branches(get_args(annotation)[0])
    elif origin is Literal:
        yield from (type(each) for each in get_args(annotation))
    else:
        yield annotation
