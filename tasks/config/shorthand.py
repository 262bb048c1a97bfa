"""The lists of a sweep in full: what a short entry stands for, before it is checked.

    factors: [svd, afm]                                          a method's name
    ratios:  [uniform, {method: softmax, temperature: 0.2}]      or a mapping with its options

The name alone of the method that the section of the same name selects takes that section's options (and its `band`); the
name of another method takes its defaults. What is asked of all ranks (`multiple`, `objective` and what belongs to it) is that of the
section wherever an entry says nothing else. A list that is null or missing has one entry, the section itself. What comes out has the
form of these sections (tasks/config/method_options.py), so that one model checks both (tasks/config/sections/).
"""

from collections.abc import Mapping
from typing import Any

from mgaa.errors import UsageError
from tasks.config.method_options import SECTIONS, select


def resolve(values: Mapping[str, Any]) -> Any:
    """The section `sweep` in full; what is of no known form is left as it is, for the check to refuse.

    Args:
        values: all sections, those that select a method with their `options` apart.

    Raises:
        UsageError: an entry names no method, or an option that its method does not take.
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
    """One list in full; `main` is the section of its name."""
    if given is None:
        return [itself(section, main)]
    if not isinstance(given, list):
        return given
    read = source if section == "backbone" else method
    return [read(section, each, main, f"sweep.{section}.{index}") for index, each in enumerate(given)]


def itself(section: str, main: Mapping[str, Any]) -> dict[str, Any]:
    """The entry that a section itself is."""
    names = {"source", "revision"} if section == "backbone" else main.keys() - {"compression"}
    return {name: main[name] for name in names & main.keys()}


def source(section: str, given: Any, main: Mapping[str, Any], where: str) -> Any:
    """A backbone by its folder or id, or a mapping with its `revision`."""
    if not isinstance(given, str):
        return given
    return itself(section, main) if given == main.get("source") else {"source": given}


def method(section: str, given: Any, main: Mapping[str, Any], where: str) -> Any:
    """A method by its name, or a mapping with its options."""
    if given == main.get("method"):
        return itself(section, main)
    if not isinstance(given, str | Mapping):
        raise UsageError(
            f"{where} is {given!r}: expected a method's name, or a mapping such as {{method: softmax, temperature: 0.2}}."
        )
    named = {"method": given} if isinstance(given, str) else given
    shared = {name: main[name] for name in SECTIONS["ranks"] - {"method"} if name in main} if section == "ranks" else {}
    try:
        return {**shared, **select(section, named, set(named))}
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
