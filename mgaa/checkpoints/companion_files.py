"""Files that accompany a model besides its weights: its vocabulary, its licence and its notices.

`save_pretrained` writes the files that a model is loaded from. Other files are needed elsewhere: `tokenizer.model` by programs that read
SentencePiece (a fast tokenizer writes only `tokenizer.json`), and LICENSE, NOTICE or USE_POLICY.md by everybody who passes a model on. So
small text files are copied unchanged from the folder of the original model, and vocabularies from the folder of its tokenizer; but never
code, weights, settings, files that a link takes from outside the folder, or the model card, which describes the other model.
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
"""Maximum bytes of a text and of a vocabulary; larger files are not copied."""

_LEGAL = re.compile(
    r"(licen[cs]es?|notices?|copying|copyright|authors|patents|attribution|disclaimer|terms|use[-_ ]policy|acceptable[-_ ]use)\b.*",
    re.IGNORECASE,
)


def texts_of(folder: Path) -> list[Path]:
    """List the licence, the notices and other small texts in the folder of a model, sorted.

    Raises:
        InputError: a file cannot be read.
    """
    return sorted(path for path in _own_files(folder) if _is_text(path))


def companion_files(model: str, tokenizer: str) -> dict[str, Path]:
    """Find the files that accompany a model, by name.

    Args:
        model, tokenizer: the origin of each, as transformers remembers it (`name_or_path`); an origin that is not a folder has none.
    """
    companions = {path.name: path for path in texts_of(Path(model))} if _is_folder(model) else {}
    if _is_folder(tokenizer):
        companions |= {path.name: path for path in _own_files(Path(tokenizer)) if _is_vocabulary(path)}
    return companions


def copy_companions(model: str, tokenizer: str, folder: Path) -> None:
    """Copy the companion files of a model into its new folder, except those that exist there."""
    for name, path in companion_files(model, tokenizer).items():
        if not (folder / name).exists():
            (folder / name).write_bytes(path.read_bytes())


def _is_folder(source: str) -> bool:
    return bool(source) and Path(source).is_dir()


def _own_files(folder: Path) -> Iterator[Path]:
    """Yield the files of the folder itself, including links inside it and, in a Hub snapshot, links into its cache entry."""
    root = folder.resolve()
    root = root.parents[1] if root.parent.name == "snapshots" else root
    for path in folder.iterdir():
        if path.is_file() and path.resolve().is_relative_to(root):
            yield path


def _is_text(path: Path) -> bool:
    legal = _LEGAL.fullmatch(path.stem if path.suffix.lower() in TEXTS else path.name)
    candidate = path.suffix.lower() in TEXTS or (legal and not path.suffix)
    if not candidate or path.name.lower().startswith(("readme", ".")) or path.name in VOCABULARY_FILES:
        return False
    try:
        return path.stat().st_size <= LARGEST_TEXT and b"\0" not in path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): make it readable, or take it out of the folder"
        ) from error


def _is_vocabulary(path: Path) -> bool:
    return path.name in VOCABULARY_FILES and path.stat().st_size <= LARGEST_VOCABULARY
