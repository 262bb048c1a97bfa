"""Step 2, read texts: the documents that calibrate, that choose, and that are reported on.

Sets that overlap are refused. The documents are kept as they are, so that every later number can be traced to text that is still there, and
apart from their tokens: texts belong to the data, tokens to a model.
"""

import json
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from demo import corpus
from mgaa.errors import InputError, UsageError
from tasks.artifacts.files import CARD, write_table
from tasks.cache.artifact import Store
from tasks.cache.manifest import file_digest
from tasks.cache.step import step
from tasks.data import documents
from tasks.data.chats import Document, plain_text
from tasks.data.files import files_below, locate_source
from tasks.data.overlap import require_disjoint, require_ranges_apart
from tasks.data.protocols import PROTOCOLS

DEMO = "demo"
logger = logging.getLogger(__name__)
SECTIONS = ("calibration", "validation", "evaluation")
READING = ("source", "split", "revision", "subset", "field", "separator", "form", "nulls", "from", "to")
"""The parameters of a data section that choose documents; the others cut them into tokens."""


def source_content(source: str) -> dict[str, str]:
    """Dependencies of the content of a source: package versions for the demo, sha256 of files; a Hub data set has its revision."""
    if source == DEMO:
        return corpus.versions()
    path = locate_source(source)
    if path is None:
        return {}
    files = files_below(path) if path.is_dir() else [path]
    try:
        return {each.relative_to(path.parent).as_posix(): file_digest(each, each.stat()) for each in files}
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read ({error.strerror}): check its permissions") from error


@step(kind="texts")
def read_texts(
    out: Path, store: Store, *, sections: dict[str, dict[str, Any]], content: dict[str, dict[str, str]]
) -> None:
    """Read the documents of every section, one per line as JSON, after the check that no two sections overlap.

    Args:
        sections: `READING` of each section, by name, and its `protocol` if it has one.
        content: `source_content` of each section's source; not read, only part of the cache key.
    """
    require_ranges_apart({name: (_place(given), given["from"], given["to"]) for name, given in sections.items()})
    read = {name: read_section(given) for name, given in sections.items()}
    portions = {name: _chosen(read[name].texts, given) for name, given in sections.items()}
    shared = require_disjoint({name: [plain_text(each) for each in texts] for name, texts in portions.items()})
    for name, texts in portions.items():
        lines = "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    card = {name: {"data_digest": documents.digest(texts), **read[name].identity} for name, texts in portions.items()}
    write_table(out / CARD, {"sections": card, "shared": shared})


def _chosen(texts: list[Document], given: Mapping[str, Any]) -> list[Document]:
    """The documents of a section's range; under a protocol the rows that count."""
    protocol = PROTOCOLS.get(given.get("protocol", ""))
    return documents.portion(texts, given["from"], given["to"])[: protocol.rows if protocol else None]


def _place(given: Mapping[str, Any]) -> str:
    """What a range is a part of: a file has no splits, so that `split` does not tell two sections of it apart."""
    path = Path(given["source"]).expanduser()
    if path.is_file():
        return str(path)
    return f"{path} (subset {given['subset']}, split {given['split']}, revision {given['revision']})"


def read_section(given: Mapping[str, Any]) -> documents.Documents:
    """The documents of a section, before its range is taken.

    Args:
        given: `READING` of the section.

    Raises:
        UsageError: the demo has no such split.
        InputError: the source cannot be read.
    """
    if given["source"] != DEMO:
        options = {name: value for name, value in given.items() if name not in ("source", "from", "to")}
        return documents.read_documents(given["source"], **options)
    held_out, differences = _demo()
    if given["split"] not in held_out:
        raise UsageError(
            f"The demo has no split {given['split']!r}, expected one of {', '.join(held_out)}: set `split`."
        )
    if given["form"] == "chat":
        raise UsageError("The demo holds texts, no conversations: set `form: text`, or give a source with `messages`.")
    texts: list[Document] = [document.text for document in held_out[given["split"]]]
    identity = {"kind": DEMO, "split": given["split"], "versions": corpus.versions(), "differences": differences}
    return documents.Documents(texts, identity)


@cache
def _demo() -> tuple[dict[str, list[corpus.Document]], list[str]]:
    """The held-out docstrings, parsed once per process, and what differs from those the backbone was trained beside."""
    held_out = corpus.held_out_documents()
    differences = corpus.check(held_out)
    for difference in differences:
        logger.warning(difference)
    return held_out, differences
