"""`params.yaml` and the command line's `section.key=value` as plain nested values, before anything is checked.

The file is YAML; OmegaConf reads it (interpolation, duplicate keys refused), and nothing of it leaves this file. What is typed on the
command line becomes a value by the type of its key (tasks/config/typed.py).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel
from yaml import YAMLError

from mgaa.errors import UsageError
from tasks.config import typed


def read_parameters(path: Path) -> dict[str, Any]:
    """The content of `params.yaml` as plain values."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True, throw_on_missing=True)
    except FileNotFoundError as error:
        raise UsageError(f"There is no {path}: expected the parameters; run in the project's folder.") from error
    except (OSError, YAMLError, OmegaConfBaseException, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} cannot be read: {reason}. Expected YAML with a section per stage.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} is a list: expected YAML with a section per stage.")
    check_texts(values, str(path))
    return {str(name): value for name, value in values.items()}


def parse_overrides(overrides: Sequence[str], model: type[BaseModel]) -> dict[str, Any]:
    """Overrides `section.key=value` as nested plain values, by the types that their keys have in `model`.

    Raises:
        UsageError: no override, or a value that cannot be read.
    """
    found: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.split(".")
        if not equals or not all(path):
            raise UsageError(
                f"{override!r} is not an override: expected section.key=value, such as ratios.compression=0.3."
            )
        if not text:
            raise UsageError(
                f"{override!r} has no value: expected section.key=value, with null for nothing, and '\"\"' for an empty text."
            )
        value = typed.parse_value(text, path, model, override)
        check_texts(value, repr(override))
        for name in reversed(path):
            value = {name: value}
        found = merge(found, value)
    return found


def check_texts(value: Any, where: str) -> None:
    """Refuse texts that no file, path or record can hold.

    Raises:
        UsageError: a text is not Unicode (bytes of another encoding, half of a surrogate pair), or has a zero byte.
    """
    for text in texts_in(value):
        if "\0" in text:
            raise UsageError(f"{where} has a zero byte in {text!r}, expected text: leave it out.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"{where} is not UTF-8 at {text[error.start]!r}, expected text: write it in UTF-8."
            ) from error


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a nested value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield str(name)
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above` in place of its own, section by section."""
    merged = dict(below)
    for name, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], value) if nested else value
    return merged
