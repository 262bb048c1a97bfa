"""What travels with a model beside its weights: the files of its vocabulary, its licence and its notices.

`save_pretrained` writes what it loads a model from. What it does not is needed by others: `tokenizer.model` by programs that read
SentencePiece (a fast tokenizer writes `tokenizer.json` alone), and LICENSE, NOTICE or USE_POLICY.md by everybody who passes a model on. So
small text files of the folder that a model came from are copied beside it as they are, and vocabularies from the folder of its tokenizer;
never code, weights, settings, what a link leads out of the folder to, nor the model card, which is about the other model.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from mgaa.errors import InputError

VOCABULARY_FILES = (
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "tiktoken.model", "qwen.tiktoken"),
    *("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
)
TEXTS = (".txt", ".md", ".rst", ".cff")
LARGEST_TEXT, LARGEST_VOCABULARY = 2**20, 2**26
"""Bytes; what is larger is no small file."""

_LEGAL = re.compile(
    r"(licen[cs]es?|notices?|copying|copyright|authors|patents|attribution|disclaimer|terms|use[-_ ]policy|acceptable[-_ ]use)\b.*",
    re.IGNORECASE,
)


def texts_of(folder: Path) -> list[Path]:
    """The licence, the notices and other small texts in the folder of a model, sorted.

    Raises:
        InputError: one cannot be read.
    """
    return sorted(path for path in _own_files(folder) if _is_text(path))


def companions(model: str, tokenizer: str) -> dict[str, Path]:
    """The files that travel with a model, by name.

    Args:
        model, tokenizer: where each came from, as transformers remembers it (`name_or_path`); what is no folder has none.
    """
    found = {path.name: path for path in texts_of(Path(model))} if _is_folder(model) else {}
    if _is_folder(tokenizer):
        found |= {path.name: path for path in _own_files(Path(tokenizer)) if _is_vocabulary(path)}
    return found


def carry(model: str, tokenizer: str, folder: Path) -> None:
    """Copy what travels with a model beside it, without what was written there already."""
    for name, path in companions(model, tokenizer).items():
        if not (folder / name).exists():
            (folder / name).write_bytes(path.read_bytes())


def _is_folder(source: str) -> bool:
    return bool(source) and Path(source).is_dir()


def _own_files(folder: Path) -> Iterator[Path]:
    """Files of the folder itself; links inside it count, and those of a Hub snapshot into its cache entry."""
    root = folder.resolve()
    root = root.parents[1] if root.parent.name == "snapshots" else root
    for path in folder.iterdir():
        if path.is_file() and path.resolve().is_relative_to(root):
            yield path


def _is_text(path: Path) -> bool:
    legal = _LEGAL.fullmatch(path.stem if path.suffix.lower() in TEXTS else path.name)
    wanted = path.suffix.lower() in TEXTS or (legal and not path.suffix)
    if not wanted or path.name.lower().startswith(("readme", ".")) or path.name in VOCABULARY_FILES:
        return False
    try:
        return path.stat().st_size <= LARGEST_TEXT and b"\0" not in path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): make it readable, or take it out of the folder"
        ) from error


def _is_vocabulary(path: Path) -> bool:
    return path.name in VOCABULARY_FILES and path.stat().st_size <= LARGEST_VOCABULARY
