"""Models out: factors into a model, the model into a folder.

`save` writes the same bytes for the same model, so that its digest is an identity: no times, no paths, no traces of how
the tokenizer was last called. The format is described in format.py; `load` reads it back (loading.py).
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.architectures import has_entry
from mgaa.companions import carry
from mgaa.errors import NumericalError, ResourceError, UsageError
from mgaa.folder import CONFIG, NOTICE
from mgaa.format import describe, is_described
from mgaa.fused import fuse_
from mgaa.loading import load
from mgaa.lowrank import Dense, Factors, LowRankLinear, non_finite
from mgaa.processors import Processor, tokenizer_of
from mgaa.shards import save_model, write_blockwise
from mgaa.widths import prune_

__all__ = ["apply_channels", "apply_dense", "apply_factors", "load", "save", "save_blockwise", "twin_of"]


def apply_factors(model: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Replace linears by low-rank ones in place, by dotted name; factors take the dtype and the device of their linear.

    The model's config then says so, and `save` writes it. May be called block by block.

    Raises:
        UsageError: a name is no linear of the model, or the factors have other shapes.
        NumericalError: a factor is not finite in the dtype of its linear.
    """
    modules = dict(model.named_modules())
    layers = {name: _replacement(name, modules.get(name), pair) for name, pair in factors.items()}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    describe(cast(PreTrainedModel, model))


def apply_dense(model: nn.Module, layers: Mapping[str, Dense]) -> None:
    """Give linears other weights and biases of the same shapes, by dotted name, in a layer of their own: twins keep theirs.

    Raises:
        NumericalError: an entry is not finite in the dtype of its linear.
    """
    for name, given in layers.items():
        old = model.get_submodule(name)
        assert isinstance(old, nn.Linear)
        layer = nn.Linear(old.in_features, old.out_features, bias=given.bias is not None, device="meta")
        for key, tensor in (("weight", given.weight), ("bias", given.bias)):
            if tensor is None:
                continue
            stored = tensor.detach().to(old.weight.device, old.weight.dtype)
            if not stored.is_meta and (bad := non_finite(stored)):
                raise NumericalError(
                    f"the {key} of {name} has {bad} non-finite entries in {stored.dtype}: set backbone.dtype to bfloat16 or float32"
                )
            setattr(layer, key, nn.Parameter(stored, requires_grad=old.weight.requires_grad))
        model.set_submodule(name, layer.train(old.training))


def apply_channels(model: PreTrainedModel, kept: Mapping[int, Int[Tensor, " k"]]) -> None:
    """Keep these channels of the FFNs of some blocks, by block, in place; the model's config then says so (`mgaa.widths.prune_`).

    Raises:
        UsageError: there is no such block or channel.
    """
    describe(prune_(model, kept))


def twin_of(model: PreTrainedModel) -> PreTrainedModel:
    """A second model that shares every tensor with the first, to put factors and channels into; the first stays as it is.

    Many compressed models of one backbone so take the memory of their factors alone.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin: PreTrainedModel = copy.deepcopy(model, shared)
    return twin


def save(
    model: PreTrainedModel,
    processor: Processor,
    folder: str | Path,
    *,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a model, dense or compressed, and its tokenizer or processor as a Hugging Face folder, in the dtype of the model.

    Weights that the folder already holds under the same names are replaced; other files stay. A model that was taken apart
    (`mgaa.fused`) and is not compressed is put together again, in place, so that any program reads it. Vocabularies, licences and notices
    travel from the folders that model and tokenizer came from (`mgaa.companions`).

    Raises:
        UsageError: the model was quantised in memory.
        ResourceError: the folder cannot be written.
    """
    _refuse_quantised(model)
    describe(model)
    if not is_described(model) and has_entry(model.config):
        fuse_(model)
    folder = Path(folder)
    with _writing(folder):
        for stale in folder.glob("model*.safetensors*"):
            stale.unlink()
        save_model(model, folder, max_shard_size=max_shard_size)
        _complete(model, processor, folder)


def save_blockwise(
    model: PreTrainedModel,
    processor: Processor,
    folder: str | Path,
    *,
    change: Callable[[int], None],
    shell: PreTrainedModel | None = None,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """`save` for a model whose blocks stay in their files (`mgaa.shelf`): one block after the other, into a folder of its own.

    Args:
        change: puts a block into its final form, in place (`mgaa.shards`): factors and channels (`apply_factors`, `apply_channels`).
        shell: the model whose class and config the folder is to have; by default the model itself.
        max_shard_size: bytes of weights up to which they are one file.

    Raises:
        ResourceError: the folder cannot be written. What is written is taken up by the next call.
    """
    folder, written = Path(folder), model if shell is None else shell

    def described() -> PreTrainedModel:
        describe(written)
        return written

    with _writing(folder):
        write_blockwise(model, folder, change=change, shell=described, max_shard_size=max_shard_size)
        _complete(written, processor, folder)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"the model cannot be written to {folder} ({error}): make room or give a folder that can be written"
        ) from error


def _refuse_quantised(model: PreTrainedModel) -> None:
    for name, tensor in model.state_dict().items():
        plain = type(tensor) in (Tensor, nn.Parameter)
        if not plain or (tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool):
            kind = tensor.dtype if plain else type(tensor).__name__
            raise UsageError(
                f"{name} is {kind}, expected a tensor of numbers of 16 bits or more: the model was quantised in memory, which our files "
                "have no form for; save it before, and quantise it each time it is loaded"
            )


def _complete(model: PreTrainedModel, processor: Processor, folder: Path) -> None:
    """What belongs into a folder beside weights and config."""
    _save_processor(processor, folder)
    carry(model.config.name_or_path, tokenizer_of(processor).name_or_path, folder)
    if is_described(model):
        _edit(folder / CONFIG, transformers_weights=NOTICE)


def _replacement(name: str, linear: nn.Module | None, factors: Factors) -> LowRankLinear:
    if not isinstance(linear, nn.Linear):
        found = "nothing" if linear is None else type(linear).__name__
        raise UsageError(f"factors for {name!r}, where the model has {found}: expected an nn.Linear")
    weight = linear.weight
    parts = {"A": factors.A, "B": factors.B} | ({} if factors.bias is None else {"bias": factors.bias})
    stored = {key: part.detach().to(weight.device, weight.dtype) for key, part in parts.items()}
    for key, part in stored.items():
        if not part.is_meta and (bad := non_finite(part)):
            raise NumericalError(
                f"factor {key} of {name} has {bad} non-finite entries in {weight.dtype}: "
                "set backbone.dtype to bfloat16 or float32"
            )
    layer = LowRankLinear.from_factors(Factors(**stored)).train(linear.training)
    if (layer.out_features, layer.in_features) != tuple(weight.shape):
        raise UsageError(
            f"factors for {name} make a {layer.out_features} x {layer.in_features} matrix, "
            f"the layer has {weight.shape[0]} x {weight.shape[1]}: use the factors of this model"
        )
    return layer.requires_grad_(weight.requires_grad)


def _save_processor(processor: Processor, folder: Path) -> None:
    """Without the truncation and padding of its tokenizer's last call, which a fast one keeps, and without its origin."""
    backend = getattr(tokenizer_of(processor), "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    processor.save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", is_local=None, local_files_only=None)


def _edit(path: Path, **entries: Any) -> None:
    """Set entries of a JSON file in the layout of transformers; None removes."""
    content = json.loads(path.read_text(encoding="utf-8")) | entries
    kept = {key: value for key, value in content.items() if key not in entries or value is not None}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
