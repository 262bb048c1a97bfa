"""The model behind an artifact `backbone` or `model`, which is a reference: the whole of it, one block, or its tokenizer alone.

A process loads a model once and shares it between steps. Where there is no room for it, its blocks stay in their files
(tasks/cache/placement.py).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tasks.artifacts.files import backbone_record
from tasks.artifacts.loaded import LoadedModels
from tasks.cache.artifact import Artifact, Store
from tasks.cache.manifest import digest
from tasks.cache.placement import should_stream

_backbones: LoadedModels[tuple[Any, Any]] = LoadedModels()


def backbone_model(store: Store, backbone: Artifact, device: str) -> tuple[Any, Any]:
    """The model in eval mode on `device`, and its tokenizer or processor; shared by the steps of a process, so never changed in place.

    A `backbone` comes taken apart into linears (`mgaa.models.fused`), a `model` that is only evaluated as it is.
    """
    from mgaa.checkpoints.load import open_checkpoint
    from mgaa.models.fused import unfuse_

    record = backbone_record(store, backbone)
    parts = record["parts"] if backbone.kind == "backbone" else None
    given: dict[str, Any] = {**place_of(store, record), "dtype": record["dtype"]}
    given["stream"] = should_stream(device, weights_of(record))

    def load() -> tuple[Any, Any]:
        model, processor, _ = open_checkpoint(**given, device=str(device))
        return model if parts is None else unfuse_(model, parts), processor

    return _backbones.get(str(device), digest([given, record["files"], parts]), load)


def forget_models() -> None:
    """Drop the loaded models, before a step that needs the memory for another one."""
    _backbones.clear()


@contextmanager
def backbone_block(store: Store, backbone: Artifact, block: int, device: str) -> Iterator[Any]:
    """The model, with the tensors of one block on the device."""
    from mgaa.blocks.offload import load_block
    from mgaa.models.architectures import stack_at

    model, _ = backbone_model(store, backbone, device)
    stack = stack_at(model, block, parts_of(store, backbone))
    with load_block(stack.blocks[block - stack.first]):
        yield model


def parts_of(store: Store, backbone: Artifact) -> list[str]:
    """Parts of the backbone that are compressed."""
    found: list[str] = backbone_record(store, backbone)["parts"]
    return found


def backbone_processor(store: Store, backbone: Artifact) -> tuple[Any, Any]:
    """The config of the model and its tokenizer, or the processor of a vision-language model, without weights."""
    from mgaa.checkpoints.load import config_and_processor

    found: tuple[Any, Any] = config_and_processor(**place_of(store, backbone_record(store, backbone)))
    return found


def backbone_tokenizer(store: Store, backbone: Artifact) -> tuple[Any, Any]:
    """The config of the model and its tokenizer, without weights."""
    from mgaa.models.processors import tokenizer_of

    config, processor = backbone_processor(store, backbone)
    return config, tokenizer_of(processor)


def place_of(store: Store, record: Mapping[str, Any]) -> dict[str, Any]:
    """Where the files of a model are, as `source` and `revision`, by its record: those of a GGUF file were dequantized into the store."""
    if "weights" in record:
        return {"source": str(store.folder(Artifact(**record["weights"]))), "revision": None}
    return {name: record[name] for name in ("source", "revision")}


def weights_of(record: dict[str, Any]) -> int:
    """Bytes of the weights of a model in memory, by its record."""
    import torch

    dtype: torch.dtype = getattr(torch, record["dtype"])
    return int(record["parameters"]) * dtype.itemsize
