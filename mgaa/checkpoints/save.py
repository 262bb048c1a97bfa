"""Saving of models: factors are put into a model, the model is written to a folder.

`save` writes the same bytes for the same model, so that its digest is an identity: no times, no paths, no traces of the tokenizer's last
call. `mgaa.checkpoints.format` describes the format; `mgaa.checkpoints.load` reads it.
"""

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Int
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.blocks.offload import folders_of, is_absent, is_offloaded
from mgaa.checkpoints.companion_files import copy_companions
from mgaa.checkpoints.folder import CONFIG
from mgaa.checkpoints.format import describe, is_described
from mgaa.checkpoints.load import load
from mgaa.checkpoints.output_folder import replace_folder
from mgaa.checkpoints.processor_files import edit_json, save_processor
from mgaa.checkpoints.reload_check import check_finite_state, check_loads
from mgaa.checkpoints.shards import save_model, save_settings, write_blockwise
from mgaa.checkpoints.tied_weights import state_tying
from mgaa.errors import NumericalError, ResourceError, UsageError
from mgaa.inputs.readers import coerce_arguments, path, to_write, unwrap_model
from mgaa.inputs.readers import processor as processor_of
from mgaa.inputs.values import size
from mgaa.models.architectures import has_entry, stacks_of
from mgaa.models.fused import block_fuser, fuse_
from mgaa.models.lowrank import Dense, Factors, LowRankLinear, non_finite
from mgaa.models.mark import NOTICE
from mgaa.models.processors import Processor, tokenizer_of
from mgaa.models.widths import prune_

__all__ = [
    "apply_channels",
    "apply_dense",
    "apply_factors",
    "check_savable",
    "load",
    "save",
    "save_blockwise",
    "twin_of",
]


@coerce_arguments(model=unwrap_model)
def apply_factors(model: nn.Module, factors: Mapping[str, Factors]) -> None:
    """Replace linears by low-rank ones in place, by dotted name; factors take the dtype and the device of their linear.

    The model's config then describes them, and `save` writes it. May be called block by block.

    Raises:
        UsageError: a name does not denote a linear of the model, or the factors have other shapes.
        NumericalError: a factor is not finite in the dtype of its linear.
    """
    modules = dict(model.named_modules())
    check_present(model, factors)
    layers = {name: _replacement(name, modules.get(name), pair) for name, pair in factors.items()}
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    describe(cast(PreTrainedModel, model))


def apply_dense(model: nn.Module, layers: Mapping[str, Dense]) -> None:
    """Give linears other weights and biases of the same shapes, by dotted name, in new layers: twins keep theirs.

    Raises:
        NumericalError: an entry is not finite in the dtype of its linear.
    """
    check_present(model, layers)
    for name, dense in layers.items():
        old = model.get_submodule(name)
        assert isinstance(old, nn.Linear)
        layer = nn.Linear(old.in_features, old.out_features, bias=dense.bias is not None, device="meta")
        for key, tensor in (("weight", dense.weight), ("bias", dense.bias)):
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
    """Keep only these channels of the FFNs, by block, in place; the model's config then describes it (`mgaa.models.widths.prune_`).

    Raises:
        UsageError: the block or the channel does not exist.
    """
    describe(prune_(model, kept))


def twin_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return a second model that shares every tensor with the first, to put factors and channels into; the first stays unchanged.

    So several compressed models of one backbone take only the memory of their factors.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin: PreTrainedModel = copy.deepcopy(model, shared)
    return twin


@coerce_arguments(model=to_write, processor=processor_of, folder=path)
def save(
    model: PreTrainedModel,
    processor: Processor,
    folder: str | Path,
    *,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write a model, dense or compressed, and its tokenizer or processor as a Hugging Face folder, in the dtype of the model.

    A folder that was saved before is replaced as a whole, in one step, once the new one is complete (`mgaa.checkpoints.output_folder`). A
    model that was split (`mgaa.models.fused`) and is not compressed is fused again, in place, so that any program reads it. A model whose
    blocks are offloaded is written block by block. Vocabularies, licences and notices are copied from the folders of the original model and
    tokenizer (`mgaa.checkpoints.companion_files`).

    Raises:
        UsageError: the saved model would not load (`mgaa.checkpoints.reload_check`), is not a model (`mgaa.inputs.readers`), or was
            quantised in memory; the folder holds files that this package did not write or that have changed since, or a streamed model
            reads from it. Nothing is written.
        NumericalError: a tensor is not finite; nothing is written.
        ResourceError: the folder cannot be written; its content stays unchanged.
    """
    folder, max_shard_size = Path(folder), size("max_shard_size", max_shard_size)
    if is_offloaded(model):
        check_loads(model, processor, folder)
        describe(model)
        change = _keep if is_described(model) else block_fuser(model)
        save_blockwise(model, processor, folder, change=change, max_shard_size=max_shard_size)
        return
    check_saved(model, processor, folder)
    with _translate_write_errors(folder), replace_folder(folder) as draft:
        _write_model(model, processor, draft, max_shard_size)


def check_saved(model: PreTrainedModel, processor: Processor, folder: Path) -> None:
    """Refuse a model that would not load again, before anything is written.

    Raises:
        UsageError, NumericalError: as `save`.
    """
    _refuse_quantised(model)
    check_loads(model, processor, folder)
    check_finite_state(model, folder)


def fill_folder(
    model: PreTrainedModel, processor: Processor, folder: Path, *, max_shard_size: int | str = "5GB"
) -> None:
    """Save into an empty folder that belongs to the caller and needs no mark; raises the errors of the disk."""
    check_saved(model, processor, folder)
    _write_model(model, processor, folder, max_shard_size)


def _write_model(model: PreTrainedModel, processor: Processor, folder: Path, max_shard_size: int | str) -> None:
    describe(model)
    state_tying(model)
    if not is_described(model) and has_entry(model.config):
        fuse_(model)
    save_model(model, folder, max_shard_size=max_shard_size)
    _complete(model, processor, folder)


def check_savable(model: PreTrainedModel, processor: Processor | None = None) -> None:
    """Write all but the weights into a temporary folder, so that what `save` would refuse is refused before anything is computed.

    Raises:
        InputError: transformers loads the config, the generation settings or the processor, but does not save them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _translate_write_errors(folder):
            save_settings(model, folder)
            if processor is not None:
                save_processor(processor, folder)


def save_blockwise(
    model: PreTrainedModel,
    processor: Processor,
    folder: str | Path,
    *,
    change: Callable[[int], None],
    shell: PreTrainedModel | None = None,
    max_shard_size: int = 5 * 10**9,
    key: str | None = None,
) -> None:
    """Save a model whose blocks are offloaded (`mgaa.blocks.offload`), one block after the other.

    Args:
        change: puts a block into its final form, in place (`mgaa.checkpoints.shards`): factors and channels (`apply_factors`,
            `apply_channels`).
        shell: the model whose class and config the folder gets; by default the model itself.
        max_shard_size: bytes of weights up to which they go into one file.
        key: identifies the output; the next call with the same key resumes from the blocks of one that failed or was killed.

    Raises:
        UsageError: the saved model would not load (`mgaa.checkpoints.reload_check`): raised before the first block or after the last; or as
            `save`.
        NumericalError: a tensor is not finite.
        ResourceError: as `save`.
    """
    folder = Path(folder)
    check_loads(model if shell is None else shell, processor, folder)
    with _translate_write_errors(folder), replace_folder(folder, reads=folders_of(model), key=key) as draft:
        fill_blockwise(model, processor, draft, change=change, shell=shell, max_shard_size=max_shard_size)


def fill_blockwise(
    model: PreTrainedModel,
    processor: Processor,
    folder: Path,
    *,
    change: Callable[[int], None],
    shell: PreTrainedModel | None = None,
    max_shard_size: int = 5 * 10**9,
) -> None:
    """Run `save_blockwise` into a folder that belongs to the caller and needs no mark; resumes from the blocks of a killed call."""
    written = model if shell is None else shell

    def changed(index: int) -> None:
        change(index)
        stack = stacks_of(model)[0]
        check_finite_state(stack.blocks[index], folder, f"{stack.path(index)}.")

    def described() -> PreTrainedModel:
        check_loads(written, processor, folder, weights=model)
        describe(written)
        return written

    write_blockwise(model, folder, change=changed, shell=described, max_shard_size=max_shard_size)
    _complete(written, processor, folder)


def check_present(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse to put anything into offloaded blocks.

    Raises:
        UsageError: a module is in such a block.
    """
    for name in names:
        if is_absent(model, name):
            raise UsageError(
                f"{name} is in a block that is offloaded to its file and cannot be changed: load the model without stream"
            )


@contextmanager
def _translate_write_errors(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"the model cannot be written to {folder} ({error}): make room or give a folder that can be written"
        ) from error


def _keep(index: int) -> None:
    """Leave a block unchanged."""


def _refuse_quantised(model: PreTrainedModel) -> None:
    for name, tensor in model.state_dict().items():
        plain = type(tensor) in (Tensor, nn.Parameter)
        if not plain or (tensor.dtype.itemsize == 1 and tensor.dtype != torch.bool):
            kind = tensor.dtype if plain else type(tensor).__name__
            raise UsageError(
                f"{name} is {kind}, expected a tensor of numbers of 16 bits or more: the model was quantised in memory, which our format "
                "cannot store; save it before, and quantise it each time it is loaded"
            )


def _complete(model: PreTrainedModel, processor: Processor, folder: Path) -> None:
    """Write the remaining files besides weights and config."""
    save_processor(processor, folder)
    copy_companions(model.config.name_or_path, tokenizer_of(processor).name_or_path, folder)
    if is_described(model):
        edit_json(folder / CONFIG, transformers_weights=NOTICE)


def _replacement(name: str, linear: nn.Module | None, factors: Factors) -> LowRankLinear:
    if not isinstance(linear, nn.Linear):
        kind = "nothing" if linear is None else type(linear).__name__
        raise UsageError(f"factors for {name!r}, where the model has {kind}: expected an nn.Linear")
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
