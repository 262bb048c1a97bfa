"""Step 9b, make examples: what recovery is trained on, plain text or instructions, tokenized (`mgaa.recovery.examples`).

Its documents may be those of the calibration, or what the backbone was trained on; those of the validation and the evaluation they
may not be.
"""

from pathlib import Path
from typing import Any

from mgaa.errors import UsageError
from tasks.artifacts.backbone import backbone_tokenizer
from tasks.artifacts.files import CARD, EXAMPLES, texts_of, write_table
from tasks.cache.artifact import Artifact, Store
from tasks.cache.step import step
from tasks.data import chats, documents, row_formats, rows
from tasks.data.chats import Document, plain_text
from tasks.data.overlap import require_disjoint
from tasks.steps.read_texts import read_section

HELD_OUT = ("validation", "evaluation")


@step(kind="examples")
def make_examples(
    out: Path,
    store: Store,
    backbone: Artifact,
    texts: Artifact,
    *,
    section: dict[str, Any],
    form: str,
    length: int,
    samples: int | None,
    seed: int,
    content: dict[str, str],
) -> None:
    """Examples of at most `length` tokens.

    Args:
        texts: of the other sections, which must not overlap with these.
        section: what chooses the documents (`tasks.steps.read_texts.READING`).
        form: `text` or `chat`, windows of packed documents; or `instructions`, rows in the format of Alpaca.
        samples, seed: how many are drawn, and how; null for all.
        content: `source_content` of the source; not read, only part of the cache key.
    """
    config, tokenizer = backbone_tokenizer(store, backbone)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise UsageError(f"data.recovery.length is {length}, expected at most {positions} (the model's positions).")
    make = examples_of_instructions if form == "instructions" else examples_of_text
    made, contents, identity = make(section, tokenizer, length, samples, seed)
    said = [plain_text(each) for each in contents]
    shared = require_disjoint({"recovery": said, **{name: texts_of(store, texts, name) for name in HELD_OUT}})
    made.save(out / EXAMPLES)
    card = {
        "examples": len(made),
        "tokens": len(made.ids),
        "scored": made.scored,
        "dropped": made.dropped,
        "data_digest": documents.digest(contents),
        "token_digest": made.digest,
        "shared": {pair: each for pair, each in shared.items() if "recovery" in pair},
        **identity,
    }
    write_table(out / CARD, card)


Made = tuple[Any, list[Document], dict[str, Any]]
"""Examples, the documents that they are made from, and what identifies those."""


def examples_of_text(section: dict[str, Any], tokenizer: Any, length: int, samples: int | None, seed: int) -> Made:
    """Windows of packed documents."""
    from mgaa.inputs import tokens
    from mgaa.recovery.examples import from_windows

    read = read_section(section)
    contents = documents.portion(read.texts, section["from"], section["to"])
    rendered, rule = chats.render_chats(contents, tokenizer, "recovery")
    stream = tokens.pack(rendered, tokenizer, rule=rule)
    return from_windows(tokens.windows(stream.ids, length, samples=samples, seed=seed)), contents, read.identity


def examples_of_instructions(
    section: dict[str, Any], tokenizer: Any, length: int, samples: int | None, seed: int
) -> Made:
    """Prompts with the answers that are scored."""
    from mgaa.inputs import tokens
    from mgaa.recovery.examples import from_instructions, prompt_of

    read, left = row_formats.read_rows(section["source"]).take(instruction_of, skip=section["nulls"] == "skip")
    part = documents.portion(read, section["from"], section["to"])
    chosen = [part[index] for index in tokens.draw_indices(len(part), samples, seed).tolist()]
    contents: list[Document] = [f"{prompt_of(row)}{row['output']}" for row in chosen]
    made = from_instructions(chosen, tokenizer, length=length)
    counted = {"left_out": left} if left else {}
    return made, contents, {"kind": "instructions", "file": Path(section["source"]).name, **counted}


def instruction_of(row: Any, place: str) -> dict[str, str]:
    """The three texts of a row in the format of Alpaca."""
    from mgaa.recovery.examples import FIELDS, check_row

    if isinstance(row, dict) and (null := next((name for name in FIELDS if name in row and row[name] is None), None)):
        raise rows.NullError(f"is null in the field {null!r}, expected a text")
    check_row(row, place)
    return {field: row[field] for field in FIELDS}
