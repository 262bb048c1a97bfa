"""The shorthand of a sweep, expanded to full entries before validation.

    factors: [svd, afm]                                          a method's name
    ratios:  [uniform, {method: softmax, temperature: 0.2}]      or a mapping with its options

A bare name takes the options (and `band`) of the section if that selects the same method, else the defaults of the method. The keys that
all rank rules share (`multiple`, `objective` and related) default to those of the section. A list that is null or missing has one entry,
the section itself. Expanded entries have the form of sections (tasks/config/method_options.py), so that one model validates both.
"""

from collections.abc import Mapping
from typing import Any

from mgaa.errors import UsageError
from tasks.config.method_options import SECTIONS, select_options


def expand_choices(values: Mapping[str, Any]) -> Any:
    """Expand the section `sweep`; entries of unknown form are left for validation to refuse.

    Args:
        values: all sections, those that select a method with their `options` apart.

    Raises:
        UsageError: an entry names an unknown method or option.
    """
    sweep = {} if values.get("sweep") is None else values["sweep"]
    if not isinstance(sweep, Mapping):
        return sweep
    mains = {name: values[name] if isinstance(values.get(name), Mapping) else {} for name in ("backbone", *SECTIONS)}
    full = {name: entries(name, sweep.get(name), main) for name, main in mains.items()}
    compression = sweep.get("compression")
    full["compression"] = [mains["ratios"].get("compression")] if compression is None else compression
    return {**sweep, **full}


def entries(section: str, given: Any, main: Mapping[str, Any]) -> Any:
    """Expand one list; `main` is the section of its name."""
    if given is None:
        return [section_entry(section, main)]
    if not isinstance(given, list):
        return given
    read = source if section == "backbone" else method
    return [read(section, each, main, f"sweep.{section}.{index}") for index, each in enumerate(given)]


def section_entry(section: str, main: Mapping[str, Any]) -> dict[str, Any]:
    """A section as an entry."""
    names = {"source", "revision"} if section == "backbone" else main.keys() - {"compression"}
    return {name: main[name] for name in names & main.keys()}


def source(section: str, given: Any, main: Mapping[str, Any], where: str) -> Any:
    """Expand a backbone: a folder or id, or a mapping with its `revision`."""
    if not isinstance(given, str):
        return given
    return section_entry(section, main) if given == main.get("source") else {"source": given}


def method(section: str, given: Any, main: Mapping[str, Any], where: str) -> Any:
    """Expand a method: a name, or a mapping with its options."""
    if given == main.get("method"):
        return section_entry(section, main)
    if not isinstance(given, str | Mapping):
        raise UsageError(
            f"{where} is {given!r}: expected a method's name, or a mapping such as {{method: softmax, temperature: 0.2}}."
        )
    named = {"method": given} if isinstance(given, str) else given
    shared = {name: main[name] for name in SECTIONS["ranks"] - {"method"} if name in main} if section == "ranks" else {}
    try:
        return {**shared, **select_options(section, named, set(named))}
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
