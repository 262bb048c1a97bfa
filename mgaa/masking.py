"""Secrets stay out of whatever is written: messages, records, reports, logs, MLflow and Prefect.

A secret comes in by a URL (user and password, values of its query) or by a variable of the environment. Both are found by parsing, in any
text: URLs are taken apart as the libraries that open them do it, and the values of variables whose names say that they are secret are
looked for as they are. What a text says beside them stays readable.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus, unquote

MASK = "***"
URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>[^\s\"'<>`]+)")
SAID = r"password|passwd|pwd|secret|api[_-]?key|access[_-]?key(?:[_-]?id)?"
PAIR = re.compile(rf"(?i)(?P<key>\b[\w-]*(?:{SAID})\b[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;)}}\]]+")
QUERY = re.compile(r"(?P<key>[?&;#][^=&;#?]*=)(?P<value>[^&;#]*)")
OPEN = {
    *("sslmode", "connect_timeout", "application_name", "target_session_attrs"),
    *(
        "timeout",
        "charset",
        "driver",
        "host",
        "port",
        "dbname",
        "database",
        "mode",
        "cache",
        "uri",
        "endpoint_url",
        "region",
    ),
}
"""Keys of a query whose values are no secrets."""
VARIABLE = re.compile(r"PASSWORD|PASSWD|SECRET|CREDENTIAL|TOKEN(?!IZERS)|API_KEY|ACCESS_KEY|AUTH_STRING|WEBHOOK")
"""Names of variables of the environment that hold secrets."""
SHORTEST = 6
"""Characters that a value must have to be looked for in a text: shorter ones are switches, and would be found everywhere."""


def masked(text: str) -> str:
    """A text with `***` in the place of every secret; masked texts stay as they are."""
    text = PAIR.sub(lambda found: f"{found['key']}{MASK}", URL.sub(_url, text))
    for secret in sorted({*_secrets_of_environment()}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def mask_values(value: Any) -> Any:
    """Nested plain values with every text masked."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: mask_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mask_values(inner) for inner in value]
    return value


def _url(found: re.Match[str]) -> str:
    """A URL without its user, password and the values of its query.

    SQLAlchemy and fsspec take everything up to the last @ as user and password where there is a colon in it, slashes included.
    """
    rest, mark, query = _split(found["rest"])
    before, at, place = rest.rpartition("@")
    if at and (":" in before or "/" not in before):
        rest = f"{MASK}@{place}"
    return f"{found['scheme']}://{rest}{QUERY.sub(_pair, mark + query)}"


def _split(rest: str) -> tuple[str, str, str]:
    """What stands before the query, its mark, and the query; a password may hold the mark as well."""
    start = rest.rfind("@") if ":" in rest[: rest.rfind("@") + 1] else -1
    places = [place for mark in "?#" if (place := rest.find(mark, start + 1)) >= 0]
    if not places:
        return rest, "", ""
    return rest[: min(places)], rest[min(places)], rest[min(places) + 1 :]


def _pair(found: re.Match[str]) -> str:
    key = unquote(found["key"][1:-1]).casefold()
    return found[0] if key in OPEN or not found["value"] else f"{found['key']}{MASK}"


def _secrets_of_environment() -> Iterator[str]:
    """The values of variables that hold secrets, plain and as URLs quote them."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and VARIABLE.search(name.upper()):
            yield from (value, quote(value, safe=""), quote_plus(value))
