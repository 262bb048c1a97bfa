"""Models read back from the files of an artifact, as a user would load them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tasks.artifacts.backbone import place_of
from tasks.artifacts.files import backbone_record
from tasks.artifacts.loaded import LoadedModels
from tasks.cache.artifact import Artifact, Store
from tasks.cache.placement import should_stream

_shared: ContextVar[LoadedModels[tuple[Any, Any]] | None] = ContextVar("shared models", default=None)


@contextmanager
def share_models() -> Iterator[None]:
    """Keep the latest model of `load_artifact` for the other steps inside this block, in this thread; drop it at the end."""
    token = _shared.set(LoadedModels())
    try:
        yield
    finally:
        _shared.reset(token)


def load_artifact(store: Store, model: Artifact, device: str) -> tuple[Any, Any]:
    """Model and tokenizer, or processor where it sees, of an artifact `backbone`, `model` or `checkpoint`, read from its files.

    Inside `share_models` it may be another step's, so leave it as it is.
    """
    shared = _shared.get()
    if shared is None:
        return _read(store, model, device)
    return shared.get(str(device), (store, model), lambda: _read(store, model, device))


def _read(store: Store, model: Artifact, device: str) -> tuple[Any, Any]:
    from mgaa.checkpoints.load import open_checkpoint
    from mgaa.models.entries import ARCHITECTURES, MULTIMODAL

    given: dict[str, Any] = {"source": store.folder(model)}
    if model.kind != "checkpoint":
        record = backbone_record(store, model)
        given = place_of(store, record) | {name: record[name] for name in ("dtype", "model_type")}
    known = given.pop("model_type", None) in (None, *ARCHITECTURES, *MULTIMODAL)
    stream = known and should_stream(device, weight_bytes(store, model))
    found, processor, _ = open_checkpoint(**given, device=str(device), stream=stream)
    return found, processor


def weight_bytes(store: Store, model: Artifact) -> int:
    """Bytes of the weight files on disk."""
    from mgaa.checkpoints.folder import locate, weight_files

    if model.kind == "checkpoint":
        return sum(path.stat().st_size for path in store.folder(model).glob("*.safetensors"))
    folder = locate(**place_of(store, backbone_record(store, model)))
    return sum(path.stat().st_size for path in weight_files(folder))
