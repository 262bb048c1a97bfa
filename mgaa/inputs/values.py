"""Readers of numbers, names and methods: from Python, numpy or a tensor, never from text (for `mgaa.inputs.readers`)."""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from huggingface_hub.serialization._base import parse_size_to_int
from torch import Tensor

from mgaa.errors import UsageError


def integer(name: str, raw: Any) -> int:
    """Read a whole number.

    Raises:
        UsageError: it is not one.
    """
    value = _plain(raw)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    raise UsageError(f"{name} is {raw!r}, expected a whole number")


def integer_or_none(name: str, raw: Any) -> int | None:
    """Read a whole number, or `None`."""
    return None if raw is None else integer(name, raw)


def number(name: str, raw: Any) -> float:
    """Read a number.

    Raises:
        UsageError: it is not one.
    """
    value = _plain(raw)
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise UsageError(f"{name} is {raw!r}, expected a number")


def size(name: str, raw: Any) -> int:
    """Read a number of bytes: a whole number or text such as "5GB".

    Raises:
        UsageError: it is neither, or below one.
    """
    try:
        count = parse_size_to_int(raw) if isinstance(raw, str) else integer(name, raw)
    except ValueError as error:
        raise UsageError(f"{name} is {raw!r}, expected bytes, as a whole number or as text such as '5GB'") from error
    if count < 1:
        raise UsageError(f"{name} is {raw!r}, expected at least one byte, such as '5GB'")
    return count


def fraction(name: str, raw: Any) -> float:
    """Read a number between 0 and 1, both excluded: the fraction of linear parameters to remove.

    Raises:
        UsageError: it is not one.
    """
    value = _plain(raw)
    share = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if 0 < share < 1:
        return share
    raise UsageError(
        f"{name} is {raw!r}, expected a number between 0 and 1 (both excluded): the fraction of linear parameters to remove, e.g. "
        f"{share / 100 if 1 < share < 100 else 0.2:g}"
    )


def fractions(name: str, raw: Any) -> list[float]:
    """Read several fractions.

    Raises:
        UsageError: as `fraction`, or it is not iterable.
    """
    if isinstance(raw, Tensor) or (isinstance(raw, Iterable) and not isinstance(raw, str | Mapping)):
        return [fraction("compression", item) for item in raw]
    raise UsageError(f"{name} is {raw!r}, expected several fractions to remove, such as (0.1, 0.2)")


def names(name: str, raw: Any) -> tuple[str, ...]:
    """Read names; a single one needs no brackets.

    Raises:
        UsageError: they are not text.
    """
    texts = (raw,) if isinstance(raw, str) else tuple(raw) if isinstance(raw, Iterable) else (raw,)
    if all(isinstance(text, str) for text in texts):
        return texts
    raise UsageError(f"{name} is {raw!r}, expected names")


def method_or_none(name: str, raw: Any) -> Any:
    """Read a method, or `None` for the default."""
    return None if raw is None else method(name, raw)


def method(name: str, raw: Any) -> Any:
    """Read a method by name, or as a mapping of `method` and its options.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(raw, str | Mapping):
        return raw
    raise UsageError(f"{name} is {raw!r}, expected a name, or a mapping with the key 'method' and options")


def _plain(raw: Any) -> Any:
    """Return the number in a tensor of one entry; other values unchanged."""
    return raw.item() if isinstance(raw, Tensor) and raw.numel() == 1 and not raw.is_meta else raw
