"""`params.yaml` and the command line's `section.key=value` as plain nested values, before anything is checked.

OmegaConf reads both (dotted keys, YAML values, interpolation, duplicate keys refused); nothing of it leaves this file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mgaa.errors import UsageError


def read(path: Path) -> dict[str, Any]:
    """The content of `params.yaml` as plain values."""
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True, throw_on_missing=True)
    except FileNotFoundError as error:
        raise UsageError(f"There is no {path}: expected the parameters; run in the project's folder.") from error
    except (OSError, YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} cannot be read: {reason}. Expected YAML with a section per stage.") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} is a list: expected YAML with a section per stage.")
    return {str(name): value for name, value in values.items()}


def parse(overrides: Sequence[str]) -> dict[str, Any]:
    """Overrides `section.key=value` as nested plain values."""
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not all(key.split(".")):
            raise UsageError(f"{text!r} is no override: expected section.key=value, such as ratios.compression=0.3.")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)), resolve=True, throw_on_missing=True)
    except (YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            f"The overrides {' '.join(overrides)!r} cannot be read: {reason}. Expected YAML values."
        ) from error
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above` in place of its own, section by section."""
    merged = dict(below)
    for name, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], value) if nested else value
    return merged
