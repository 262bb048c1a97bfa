"""Step 0, dequantize: a backbone that is a GGUF file, as a Hugging Face folder in the store (`mgaa.checkpoints.gguf`)."""

from pathlib import Path

from tasks.cache.artifact import Store
from tasks.cache.step import step


@step(kind="dequantized")
def dequantize(out: Path, store: Store, *, source: str, files: dict[str, str], dtype: str) -> None:
    """Dequantize the tensors of the file, and write the config and the tokenizer that its header describes.

    Args:
        files: its sha256 (`identify`); not read, only part of the cache key.
        dtype: of the weights that are written (`backbone.dtype`).
    """
    from mgaa.checkpoints.folder import gguf_file
    from mgaa.checkpoints.gguf import fill_from_gguf

    file = gguf_file(source)
    assert file is not None
    fill_from_gguf(file, out, dtype=dtype)
