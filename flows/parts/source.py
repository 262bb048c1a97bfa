"""A model as `load_backbone` and `load_model` take it: a folder, a model of the Hub, or a GGUF file, which is dequantized before."""

from typing import Any

from mgaa.checkpoints.folder import gguf_file
from tasks.cache.artifact import Store
from tasks.steps.dequantize import dequantize
from tasks.steps.load_backbone import architecture_digest, identify


def prepare_source(store: Store, source: str, revision: str | None, dtype: str) -> dict[str, Any]:
    """The arguments that the two steps share.

    Args:
        dtype: `backbone.dtype`.

    Raises:
        UsageError, InputError: the source is missing, damaged or ambiguous (`mgaa.checkpoints.folder`, `mgaa.checkpoints.gguf`).
    """
    given: dict[str, Any] = {
        "source": source,
        "revision": revision,
        "dtype": dtype,
        "files": identify(source, revision),
    }
    if gguf_file(source, revision) is None:
        return {**given, "weights": None, "architecture": architecture_digest(source, revision)}
    weights = dequantize(store, source=source, files=given["files"], dtype=dtype)
    return {**given, "weights": weights, "architecture": architecture_digest(str(store.folder(weights)), None)}
