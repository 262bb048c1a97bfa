"""Step 2, prepare data: from sources to documents, from documents to tokens.

`read_texts` reads the three sets of documents, refuses sets that overlap, and keeps them as they are, so that every later number can be
traced to text that is still there. `tokenize` packs one set with the backbone's tokenizer. The two are apart because texts belong to the data
and tokens to a model: another backbone reads the same texts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo import corpus
from tasks import documents
from tasks.artifact import Artifact, Store
from tasks.load_backbone import backbone_model
from tasks.overlap import require_disjoint, require_ranges_apart
from tasks.sealing import file_digest
from tasks.step import step

DEMO = "demo"
SECTIONS = ("calibration", "validation", "evaluation")
READING = ("source", "split", "revision", "field", "separator", "from", "to")
"""The parameters of a data section that choose documents; the others cut them into tokens."""


def source_content(source: str) -> dict[str, str]:
    """What a source's content depends on: package versions for the demo, sha256 of files; a Hub data set has its revision."""
    if source == DEMO:
        return corpus.versions()
    path = Path(source)
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path] if path.is_file() else []
    return {each.relative_to(path.parent).as_posix(): file_digest(each, each.stat()) for each in files}


@step(kind="texts")
def read_texts(out: Path, store: Store, *, sections: dict[str, dict[str, Any]], content: dict[str, dict[str, str]]) -> None:
    """Read the documents of every section, as one JSON string per line, after the check that no two sections overlap.

    Args:
        sections: `READING` of each section, by name.
        content: `source_content` of each section's source; not read, only part of the stage key.
    """
    require_ranges_apart({name: (_place(given), given["from"], given["to"]) for name, given in sections.items()})
    read = {name: _read(given) for name, given in sections.items()}
    portions = {
        name: documents.portion(read[name].texts, given["from"], given["to"]) for name, given in sections.items()
    }
    shared = require_disjoint(portions)
    for name, texts in portions.items():
        lines = "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
        (out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    card = {name: {"data_digest": documents.digest(texts), **read[name].identity} for name, texts in portions.items()}
    (out / "card.json").write_text(json.dumps({"sections": card, "shared": shared}, indent=1) + "\n")


def _place(given: Mapping[str, Any]) -> str:
    return f"{given['source']} (split {given['split']})"


def _read(given: Mapping[str, Any]) -> documents.Documents:
    if given["source"] != DEMO:
        options = {name: given[name] for name in ("split", "revision", "field", "separator")}
        return documents.read(given["source"], **options)
    held_out = corpus.held_out()
    texts = [document.text for document in held_out[given["split"]]]
    return documents.Documents(texts, {"kind": DEMO, "split": given["split"], "versions": corpus.versions()})


def texts_of(store: Store, texts: Artifact, section: str) -> list[str]:
    """The documents of a section."""
    lines = (store.folder(texts) / f"{section}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


@step(kind="tokens", task_run_name="tokenize-{section}")
def tokenize(
    out: Path,
    store: Store,
    backbone: Artifact,
    texts: Artifact,
    *,
    section: str,
    length: int,
    samples: int | None,
    seed: int,
) -> None:
    """Token ids of a section in one row: the whole stream, or `samples` windows of `length` tokens end to end."""
    from safetensors.torch import save_file

    from mgaa import tokens

    model, tokenizer = backbone_model(store, backbone, "cpu")
    contents = texts_of(store, texts, section)
    stream = tokens.pack(contents, tokenizer)
    tokens.check_vocabulary(stream.ids, model.get_input_embeddings().num_embeddings)
    windows = tokens.windows(stream.ids, length, samples=samples, seed=seed)
    ids = stream.ids if samples is None else windows.flatten()
    card = {
        "length": length,
        "tokens": len(ids),
        "documents": stream.documents,
        "bytes": stream.bytes,
        "stream_tokens": len(stream),
        "unknown": stream.unknown,
        "bos_rule": stream.rule,
        "data_digest": documents.digest(contents),
        "token_digest": tokens.digest(ids),
    }
    save_file({"ids": ids}, out / "tokens.safetensors")
    (out / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def token_stream(store: Store, tokens: Artifact) -> tuple[Any, dict[str, Any]]:
    """The ids of a section in one row, and its card."""
    from safetensors.torch import load_file

    folder = store.folder(tokens)
    return load_file(folder / "tokens.safetensors")["ids"], json.loads((folder / "card.json").read_text())


def token_windows(store: Store, tokens: Artifact) -> Any:
    """The ids of a section as windows (sequences, length), without the tail that fills none."""
    ids, card = token_stream(store, tokens)
    length = card["length"]
    return ids[: len(ids) // length * length].reshape(-1, length)
