"""Conditions on settings: `key=value`, `key!=value`, `key has value` and `key is trait`, joined by ` and `.

Values are written as on the command line. `has` looks for an entry of a list, `is` for a trait of the selected method
(`mgaa.methods.Traits`), as in `factors.method is gradients`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from mgaa.methods import method_traits

Settings = Mapping[str, Any]
"""Every value by its dotted key."""
CONDITION = re.compile(r"(?P<key>[\w.]+)(?P<operator>=|!=| has | is )(?P<value>\w+)")


def holds(conditions: str, settings: Settings) -> bool:
    """Tell whether all of these conditions hold; an empty text always does."""
    return all(
        OPERATORS[found["operator"]](found["key"], settings[found["key"]], found["value"])
        for found in map(parse_condition, filter(None, conditions.split(" and ")))
    )


def parse_condition(condition: str) -> re.Match[str]:
    """The key, the operator and the value of a condition."""
    found = CONDITION.fullmatch(condition)
    assert found is not None, condition
    return found


def has_trait(key: str, method: str, trait: str) -> bool:
    """Tell whether the method that `key` selects has a trait."""
    return bool(getattr(method_traits(key.partition(".")[0], method), trait))


OPERATORS: dict[str, Callable[[str, Any, str], bool]] = {
    "=": lambda _, found, value: as_text(found) == value,
    "!=": lambda _, found, value: as_text(found) != value,
    " has ": lambda _, found, value: value in found,
    " is ": has_trait,
}


def as_text(value: Any) -> str:
    """A value as it is written on the command line; a list as its entries."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
