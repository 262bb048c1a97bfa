"""The lines of a user's `.jsonl` file: one object each, of text that can be written."""

import json
from typing import Any

from mgaa.errors import InputError


def row_of(line: str, place: str) -> Any:
    """What a line holds.

    Args:
        place: the line and its file, as the message begins.

    Raises:
        InputError: it is not JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON ({error}), expected one object per line.") from error


def check_text(text: str, place: str) -> None:
    """Refuse half of a character: JSON can spell it (`"\\ud800"`), and no tokenizer and no file takes it.

    Raises:
        InputError: there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start : error.end])
        raise InputError(
            f"{place} has {half} in its text, half of a character (a lone surrogate): write the text in UTF-8, or leave the line out."
        ) from error
