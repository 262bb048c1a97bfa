"""`params.yaml` and the overrides `section.key=value` as plain nested values, before validation.

OmegaConf reads the YAML file (with interpolation; duplicate keys are errors) and is not used anywhere else. Overrides are converted by the
type of their key (tasks/config/typed.py).
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
    """Read `params.yaml` as plain values."""
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
    """Parse overrides `section.key=value` into nested plain values, by the types of their keys in `model`.

    Raises:
        UsageError: not an override, or a value that cannot be read.
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
                f"{override!r} has no value: expected section.key=value, with null for no value, and '\"\"' for an empty string."
            )
        value = typed.parse_value(text, path, model, override)
        check_texts(value, repr(override))
        for name in reversed(path):
            value = {name: value}
        found = merge(found, value)
    return found


def check_texts(value: Any, where: str) -> None:
    """Refuse strings that no file, path or record can hold.

    Raises:
        UsageError: a string is not Unicode (another encoding, half of a surrogate pair), or contains a zero byte.
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
    """Every string in a nested value, keys included."""
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
    """Merge two nested mappings; values of `above` win, section by section."""
    merged = dict(below)
    for name, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], value) if nested else value
    return merged
