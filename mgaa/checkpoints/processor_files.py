"""The files of a tokenizer or processor in a saved folder."""

import json
from pathlib import Path
from typing import Any

from mgaa.checkpoints.shards import translate_save_errors
from mgaa.models.processors import Processor, tokenizer_of


def save_processor(processor: Processor, folder: Path) -> None:
    """Save a processor without the truncation and padding of its tokenizer's last call, which a fast one keeps, and without its origin."""
    backend = getattr(tokenizer_of(processor), "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    with translate_save_errors(f"this {type(processor).__name__}"):
        processor.save_pretrained(folder)
    edit_json(folder / "tokenizer_config.json", is_local=None, local_files_only=None)


def edit_json(path: Path, **entries: Any) -> None:
    """Set entries of a JSON file in the layout of transformers; None removes an entry."""
    content = json.loads(path.read_text(encoding="utf-8")) | entries
    kept = {key: value for key, value in content.items() if key not in entries or value is not None}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
