"""Readers of numbers, names and methods: from Python, numpy or a tensor, never from text (for `mgaa.inputs.readers`)."""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from huggingface_hub.serialization._base import parse_size_to_int
from torch import Tensor

from mgaa.errors import UsageError


def integer(name: str, given: Any) -> int:
    """Read a whole number.

    Raises:
        UsageError: it is not one.
    """
    value = _plain(given)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    raise UsageError(f"{name} is {given!r}, expected a whole number")


def integer_or_none(name: str, given: Any) -> int | None:
    """Read a whole number, or `None`."""
    return None if given is None else integer(name, given)


def number(name: str, given: Any) -> float:
    """Read a number.

    Raises:
        UsageError: it is not one.
    """
    value = _plain(given)
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise UsageError(f"{name} is {given!r}, expected a number")


def size(name: str, given: Any) -> int:
    """Read a number of bytes: a whole number or text such as "5GB".

    Raises:
        UsageError: it is neither, or below one.
    """
    try:
        found = parse_size_to_int(given) if isinstance(given, str) else integer(name, given)
    except ValueError as error:
        raise UsageError(f"{name} is {given!r}, expected bytes, as a whole number or as text such as '5GB'") from error
    if found < 1:
        raise UsageError(f"{name} is {given!r}, expected at least one byte, such as '5GB'")
    return found


def fraction(name: str, given: Any) -> float:
    """Read a number between 0 and 1, both excluded: the fraction of linear parameters to remove.

    Raises:
        UsageError: it is not one.
    """
    value = _plain(given)
    found = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if 0 < found < 1:
        return found
    raise UsageError(
        f"{name} is {given!r}, expected a number between 0 and 1 (both excluded): the fraction of linear parameters to remove, e.g. "
        f"{found / 100 if 1 < found < 100 else 0.2:g}"
    )


def fractions(name: str, given: Any) -> list[float]:
    """Read several fractions.

    Raises:
        UsageError: as `fraction`, or it is not iterable.
    """
    if isinstance(given, Tensor) or (isinstance(given, Iterable) and not isinstance(given, str | Mapping)):
        return [fraction("compression", each) for each in given]
    raise UsageError(f"{name} is {given!r}, expected several fractions to remove, such as (0.1, 0.2)")


def names(name: str, given: Any) -> tuple[str, ...]:
    """Read names; a single one needs no brackets.

    Raises:
        UsageError: they are not text.
    """
    found = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else (given,)
    if all(isinstance(each, str) for each in found):
        return found
    raise UsageError(f"{name} is {given!r}, expected names")


def method_or_none(name: str, given: Any) -> Any:
    """Read a method, or `None` for the default."""
    return None if given is None else method(name, given)


def method(name: str, given: Any) -> Any:
    """Read a method by name, or as a mapping of `method` and its options.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(given, str | Mapping):
        return given
    raise UsageError(f"{name} is {given!r}, expected a name, or a mapping with the key 'method' and options")


def _plain(given: Any) -> Any:
    """Return the number in a tensor of one entry; other values unchanged."""
    return given.item() if isinstance(given, Tensor) and given.numel() == 1 and not given.is_meta else given
