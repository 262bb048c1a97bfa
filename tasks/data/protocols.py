"""Protocols of published perplexities: which rows, joined by what, in how many windows.

The rows of a data set are joined as they are, blank ones included, and tokenized once (`mgaa.inputs.tokens.join`); the stream is cut into
whole windows back to back, of 2048 tokens unless another length is stated, and the tail that fills none is left out. The loss of every
token of a window but the first counts. The papers state the length at most; the rest is read off their code:

- `wikitext2`: `wikitext-2-raw-v1`, rows joined by two newlines. GPTQ, SparseGPT, Wanda, SVD-LLM and those after them agree.
- `ptb`: column `sentence` of `ptb_text_only`, test split, joined by a blank: GPTQ with `--new-eval`, SparseGPT. SVD-LLM's evaluation joins
  by two newlines; GPTQ without `--new-eval` does so on the validation split.
- `c4`: the first 1,100 rows of the validation split, joined by a blank, of which the first 256 windows: GPTQ with `--new-eval`, SparseGPT.
  SVD-LLM's evaluation joins the first 2,000 rows of a file of its own by two newlines and takes all windows; GPTQ without `--new-eval`
  draws 256 documents and a window from each.

Another separator is stated by `data.evaluation.separator`. Read in IST-DASLab/gptq `datautils.py`, AIoT-MLSys-Lab/SVD-LLM
`utils/data_utils.py` and `evaluater.py`.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mgaa.errors import UsageError


@dataclass(frozen=True)
class Protocol:
    """How published numbers on a data set are taken.

    Attributes:
        separator: between rows.
        field: the column with the text.
        row: makes the row of the data set from a line of its text file, without the line's end; null where the file has no such form.
        rows, windows: the first so many count; null: all.
    """

    separator: str
    field: str
    row: Callable[[str], str] | None
    rows: int | None = None
    windows: int | None = None


def _wikitext_row(line: str) -> str:
    """A line with its end, a blank one as an empty text, as in the data set on the Hub."""
    return f"{line}\n" if line.strip() else ""


PROTOCOLS = {
    "wikitext2": Protocol(separator="\n\n", field="text", row=_wikitext_row),
    "ptb": Protocol(separator=" ", field="sentence", row=str.strip),
    "c4": Protocol(separator=" ", field="text", row=None, rows=1100, windows=256),
}


def rows_of_lines(name: str, text: str) -> list[str]:
    """The rows of a data set that is given as its text file, a row per line.

    Raises:
        UsageError: documents of the data set have several lines, so that a text file does not tell them apart.
    """
    row = PROTOCOLS[name].row
    if row is None:
        raise UsageError(
            f"data.evaluation.protocol is {name!r}, but the source is a text file, in which its documents cannot be told apart: give rows "
            "(jsonl, parquet, ...) or the Hub's data set."
        )
    return [row(line.removesuffix("\n")) for line in io.StringIO(text, newline=None)]


def separator_of(name: str, stated: str) -> str:
    """What the rows are joined by; `stated` is the setting `separator`, by default `auto`."""
    return PROTOCOLS[name].separator if stated == "auto" else stated


def describe(name: str, stated: str, tokens: int, length: int) -> dict[str, Any]:
    """What the numbers under a protocol depend on and papers leave out, for the card.

    Args:
        stated: the setting `separator`.
        tokens: of the joined rows.
        length: of a window, in tokens.
    """
    limit = PROTOCOLS[name].windows
    whole = tokens // length if limit is None else min(limit, tokens // length)
    return {
        "name": name,
        "separator": separator_of(name, stated),
        "rows": "as they are, blank ones included, tokenized once as one text",
        "windows": f"{whole} whole ones back to back",
        "left_out_tokens": tokens - whole * length,
        "scored": "every token of a window but its first",
    }
