"""Models read back from the files of an artifact, as a user would load them."""

from typing import Any

from tasks.artifacts.files import backbone_record
from tasks.cache.artifact import Artifact, Store
from tasks.cache.placement import streams


def load_artifact(store: Store, model: Artifact, device: str) -> tuple[Any, Any]:
    """Model and tokenizer, or processor where it sees, of an artifact `backbone`, `model` or `checkpoint`, read from its files."""
    from mgaa.checkpoints.save import load
    from mgaa.models.entries import ARCHITECTURES, MULTIMODAL

    given: dict[str, Any] = {"source": store.folder(model)}
    if model.kind != "checkpoint":
        given = {name: backbone_record(store, model)[name] for name in ("source", "revision", "dtype", "model_type")}
    known = given.pop("model_type", None) in (None, *ARCHITECTURES, *MULTIMODAL)
    return load(**given, device=str(device), stream=known and streams(device, weight_bytes(store, model)))


def weight_bytes(store: Store, model: Artifact) -> int:
    """Bytes of the weight files on disk."""
    from mgaa.checkpoints.folder import locate, weight_files

    if model.kind == "checkpoint":
        return sum(path.stat().st_size for path in store.folder(model).glob("*.safetensors"))
    record = backbone_record(store, model)
    return sum(path.stat().st_size for path in weight_files(locate(record["source"], record["revision"])))
