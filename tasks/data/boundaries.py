"""Rules for where one document ends and the next begins.

Windows, ranges (`from`, `to`) and the check for overlap all count in whole documents, so a text file needs a rule that finds them.
`auto` takes the first rule whose sign occurs in the text: lines that hold only an end-of-text marker (TinyStories and most training
dumps), article headings of WikiText (` = Title = ` between blank lines; gives the published 600, 60 and 60 articles of WikiText-2),
blank lines, else every line (Penn Treebank). The rule used is reported with the result. A rule may be forced by name, any other string
is a literal separator, and `none` keeps each file whole, as the published perplexities on WikiText do.

Rows (jsonl, `datasets`) are documents already, with one exception: the Hub's WikiText has one row per line, so if there are article
headings among the rows, they are joined to a text again and cut at the headings.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mgaa.errors import InputError


@dataclass(frozen=True)
class Rule:
    """A separator that `auto` looks for, and its description."""

    sign: re.Pattern[str]
    words: str


RULES = {
    "markers": Rule(re.compile(r"^[ \t]*<\|endoftext\|>[ \t\r]*$", re.MULTILINE), "lines holding only <|endoftext|>"),
    "headings": Rule(
        re.compile(r"^[ \t\r]*\n(?= = [^=\s][^\n]* = \r?\n[ \t\r]*\n)", re.MULTILINE), "WikiText article headings"
    ),
    "paragraphs": Rule(re.compile(r"(?<=\S)[ \t\r]*\n(?:[ \t\r]*\n)+(?=.*\S)"), "blank lines"),
    "lines": Rule(re.compile(r"\n"), "every line"),
}
"""In the order in which `auto` tries them."""

_HEADING_ROW = re.compile(r" = [^=\s][^\n]* = \n?")


def cut_text(text: str, separator: str = "auto") -> tuple[list[str], str]:
    """Cut one text into documents, without blank ones; returns them with the rule in words.

    Raises:
        InputError: a literal separator that does not occur.
    """
    if separator == "none":
        return _kept([text]), "none: each file is one document"
    framed = f"\n{text}\n"  # so that there is a line before a heading on the first line
    if separator == "auto":
        separator = next((name for name, rule in RULES.items() if rule.sign.search(framed)), "lines")
    if separator in RULES:
        rule = RULES[separator]
        return _kept(rule.sign.split(framed)), rule.words
    if separator not in text:
        raise InputError(
            f"The separator {separator!r} does not occur in the text, expected it between documents: "
            f"use auto, none, {', '.join(RULES)}, or a string that occurs."
        )
    return _kept(text.split(separator)), f"separator {separator!r}"


def cut_rows(rows: Sequence[str], separator: str = "auto") -> tuple[list[str], str]:
    """Make documents of rows, without blank ones; returns them with the rule in words. `none` joins all rows by blank lines.

    Raises:
        InputError: a literal separator that does not occur.
    """
    if separator == "auto" and any(_HEADING_ROW.fullmatch(row) for row in rows):
        return cut_text("".join(_line(row) for row in rows), "headings")
    if separator == "auto":
        return _kept(rows), "every row"
    return cut_text("\n\n".join(rows) if separator == "none" else "\n".join(rows), separator)


def _line(row: str) -> str:
    """Line of the original file for a row of the Hub's WikiText, in which blank lines hold one space."""
    return (row or " ") if row.endswith("\n") else (row or " ") + "\n"


def _kept(parts: Sequence[str]) -> list[str]:
    return [part.lstrip("\r\n").rstrip() for part in parts if part.strip()]
