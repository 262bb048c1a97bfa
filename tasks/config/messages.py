"""Error messages and `--help` of the parameters, both generated from their model.

A message gives the key as written in `params.yaml`, its value, what was expected and, for an unknown key, the valid ones with the closest
match. All problems of a configuration are reported at once, one per line.
"""

import difflib
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeGuard, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Model = type[BaseModel]


def explain_errors(error: ValidationError, model: Model, copies: str = "") -> str:
    """Every problem that pydantic found, one per line; those of the section `copies`, which repeats others, only if there are no others."""
    problems: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for problem in [each for each in error.errors() if each["loc"][:1] != (copies,)] or error.errors():
        problems.setdefault(format_location(problem["loc"], model), []).append(problem)
    return "\n".join(sentence(path, found, model) for path, found in problems.items())


def sentence(path: tuple[str, ...], problems: Sequence[Mapping[str, Any]], model: Model) -> str:
    """One line for all problems of a key (a union has one per alternative)."""
    key, kind, value = ".".join(path), problems[0]["type"], problems[0]["input"]
    if kind == "extra_forbidden":
        valid = keys_of(path[:-1], model)
        return f"{key} is unknown: expected one of {', '.join(valid)}{suggest(path[-1], valid)}"
    if kind == "missing":
        return f"{key} is missing: expected {meaning(path, model)}."
    if kind == "value_error":
        return f"{key}: {problems[0]['msg'].removeprefix('Value error, ')}."
    if kind == "too_short":
        return f"{key} is {value!r}: expected at least one entry ({meaning(path, model)})."
    if kind in ("model_type", "model_attributes_type"):
        return f"{key} is {value!r}: expected a section with the keys {', '.join(keys_of(path, model))}."
    if kind in ("string_pattern_mismatch", "string_too_short"):
        return f"{key} is {value!r}: expected {meaning(path, model)}."
    expected = " or ".join(dict.fromkeys(expectation(problem) for problem in problems))
    return f"{key} is {value!r}: expected {expected} ({meaning(path, model)}{remedy(key, kind, value)})."


def remedy(key: str, kind: str, value: Any) -> str:
    """How to write the value if only its form is wrong."""
    if kind == "string_type" and isinstance(value, int | float):
        return "; put strings that YAML reads as numbers or switches, such as no, 007 and 12:30, in quotes"
    return f"; in brackets, {shlex.quote(f'{key}=[{value}]')}" if kind == "list_type" and isinstance(value, str) else ""


def expectation(problem: Mapping[str, Any]) -> str:
    """Pydantic's expectation without its opening words."""
    text = (
        str(problem["msg"])
        .removeprefix("Input should be ")
        .replace("a valid integer", "an integer")
        .replace("a valid ", "a ")
    )
    return f"a number {text}" if text.startswith(("greater", "less")) else text


def format_location(location: Sequence[int | str], model: Model) -> tuple[str, ...]:
    """The keys of a location as written, without pydantic's names for the branches of a union."""
    path: list[str] = []
    for part in location:
        if model_at(path, model) is None and not isinstance(part, int):
            break
        path.append(str(part))
    return tuple(path)


def model_at(path: Iterable[str], model: Model) -> Model | None:
    """The model at a path of keys, entries of lists by number; None for a plain value."""
    found: Any = model
    for name in path:
        if name.isdigit():
            found = next(iter(get_args(found)), None)
        else:
            field = fields(found).get(name) if is_model(found) else None
            found = field.annotation if field is not None else None
    return found if is_model(found) else None


def is_model(annotation: Any) -> TypeGuard[Model]:
    """Tell whether a type is a section."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def fields(model: Model) -> dict[str, FieldInfo]:
    """The fields of a model by their names in `params.yaml`."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def keys_of(path: Sequence[str], model: Model) -> list[str]:
    """The valid keys of a section."""
    inner = model_at(path, model)
    return [name for name in fields(inner) if name != "options"] if inner is not None else []


def meaning(path: Sequence[str], model: Model) -> str:
    """The description of a key."""
    named = [*path]
    while named[-1].isdigit():  # an entry of a list means what the list means
        named.pop()
    inner = model_at(named[:-1], model)
    field = fields(inner).get(named[-1]) if inner is not None else None
    keys = keys_of(named, model)
    return (field.description if field else None) or f"a section with the keys {', '.join(keys)}"


def suggest(name: Any, valid: Iterable[str]) -> str:
    """End a list of valid names with the closest match as a question, or with a full stop."""
    near = difflib.get_close_matches(str(name), list(valid), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def parameters_reference(model: Model, above: str = "") -> Iterator[str]:
    """The lines of `--help`: every key with its meaning and choices."""
    for name, field in fields(model).items():
        key = f"{above}{name}"
        if is_model(field.annotation):
            title = field.description or " ".join((field.annotation.__doc__ or "").split())
            yield f"{'' if above else chr(10)}{key}: {title}"
            yield from (f"  {line}" for line in parameters_reference(field.annotation, f"{key}."))
        elif name != "options":
            yield f"{key}  {field.description}{choices(field.annotation)}"


def choices(annotation: Any) -> str:
    """The values of a `Literal`, in parentheses."""
    branches = [annotation, *get_args(annotation)]
    values = [str(value) for branch in branches if get_origin(branch) is Literal for value in get_args(branch)]
    return f" ({', '.join(values)})" if values else ""
