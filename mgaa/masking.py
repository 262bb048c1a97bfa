"""Secrets stay out of everything that is written: messages, records, reports, logs, MLflow and Prefect.

A secret comes from a URL (user and password, values of its query) or from an environment variable. Both are found by parsing, in any text:
URLs are split in the way of the libraries that open them, and the values of variables whose names denote secrets are searched for verbatim.
The rest of the text stays readable.
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
"""Query keys whose values are not secret."""
VARIABLE = re.compile(r"PASSWORD|PASSWD|SECRET|CREDENTIAL|TOKEN(?!IZERS)|API_KEY|ACCESS_KEY|AUTH_STRING|WEBHOOK")
"""Names of environment variables that hold secrets."""
SHORTEST = 6
"""Minimum length of a value to search for: shorter ones are switches, and would match everywhere."""


def masked(text: str) -> str:
    """Replace every secret in a text by `***`; a masked text stays unchanged."""
    text = PAIR.sub(lambda match: f"{match['key']}{MASK}", URL.sub(_url, text))
    for secret in sorted({*_secrets_of_environment()}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def mask_values(value: Any) -> Any:
    """Mask every text in nested plain values."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: mask_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mask_values(inner) for inner in value]
    return value


def _url(match: re.Match[str]) -> str:
    """Strip a URL of its user, its password and the values of its query.

    SQLAlchemy and fsspec take everything up to the last @ as user and password where it has a colon, slashes included.
    """
    rest, mark, query = _split(match["rest"])
    before, at, place = rest.rpartition("@")
    if at and (":" in before or "/" not in before):
        rest = f"{MASK}@{place}"
    return f"{match['scheme']}://{rest}{QUERY.sub(_pair, mark + query)}"


def _split(rest: str) -> tuple[str, str, str]:
    """Split the part of a URL after its scheme at the query: before, mark, query; a password may hold the mark as well."""
    start = rest.rfind("@") if ":" in rest[: rest.rfind("@") + 1] else -1
    places = [place for mark in "?#" if (place := rest.find(mark, start + 1)) >= 0]
    if not places:
        return rest, "", ""
    return rest[: min(places)], rest[min(places)], rest[min(places) + 1 :]


def _pair(match: re.Match[str]) -> str:
    key = unquote(match["key"][1:-1]).casefold()
    return match[0] if key in OPEN or not match["value"] else f"{match['key']}{MASK}"


def _secrets_of_environment() -> Iterator[str]:
    """Yield the values of variables that hold secrets, plain and as URLs quote them."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and VARIABLE.search(name.upper()):
            yield from (value, quote(value, safe=""), quote_plus(value))
