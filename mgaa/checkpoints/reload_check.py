"""Check that a saved model will load, with the loading code itself, before anything is written.

Everything small that a folder will hold (config, generation settings, tokenizer) is written to a temporary one, and `load` is simulated on
it with the model's own tensors on the meta device, so that transformers itself compares their names, shapes and dtypes. It needs no second
model, only the time to build an empty one and to load a tokenizer.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from mgaa.boundary import describe_cause, is_failure
from mgaa.checkpoints.format import describe, is_described
from mgaa.checkpoints.load import format_deviations, simulate_load
from mgaa.checkpoints.meta_model import meta_copy
from mgaa.checkpoints.shards import save_model
from mgaa.checkpoints.tied_weights import state_tying
from mgaa.errors import MgaaError, NumericalError, ResourceError, UsageError
from mgaa.models.architectures import has_entry
from mgaa.models.fused import fuse_
from mgaa.models.lowrank import non_finite
from mgaa.models.processors import Processor


def check_loads(
    model: PreTrainedModel, processor: Processor, folder: Path, *, weights: PreTrainedModel | None = None
) -> None:
    """Refuse a model that would not load once it is saved; it stays unchanged, and nothing is written to the folder.

    Args:
        model: its class and config are saved.
        processor: is saved along with it.
        folder: for messages.
        weights: the model whose tensors are saved, by default `model`.

    Raises:
        UsageError: it would not load; the message names the tensors or the file, and the remedy.
        ResourceError: there is no room for a temporary folder.
    """
    outline = meta_copy(model) if weights is None else meta_copy(weights)
    with TemporaryDirectory() as draft:
        try:
            described = _describe_outline(outline if weights is None else meta_copy(model))
            loaded, wrong = simulate_load(
                _write_without_weights(described, processor, Path(draft)),
                _tensors(described if weights is None else outline),
            )
        except BaseException as error:  # transformers may raise anything (mgaa.boundary)
            if not is_failure(error):
                raise
            if isinstance(error, OSError) and error.errno is not None:
                raise ResourceError(f"a temporary folder cannot be written ({error}): make room") from error
            cause = (str(error) if isinstance(error, MgaaError) else describe_cause(error)).replace(draft, str(folder))
            raise UsageError(f"nothing was written to {folder}, because it would not load: {cause}") from error
    expected = loaded.state_dict()
    kept = {name: tensor for name, tensor in outline.state_dict().items() if name in expected}
    if others := {name for name, tensor in kept.items() if _differ(tensor.dtype, expected[name].dtype)}:
        wrong[f"in a dtype other than {loaded.dtype}"] = others
    if wrong:
        raise UsageError(
            f"nothing was written to {folder}, because it would not load: for a {type(loaded).__name__} with the model's config, the "
            f"tensors are {format_deviations(wrong)}. {_remedy(wrong, model, loaded)}"
        )


def check_finite_state(module: nn.Module, folder: Path, path: str = "") -> None:
    """Refuse non-finite tensors, as `load` does.

    Args:
        path: the name of the module in its model.

    Raises:
        NumericalError: a tensor is not finite.
    """
    for name, tensor in module.state_dict().items():
        if not tensor.is_meta and (bad := non_finite(tensor)):
            raise NumericalError(
                f"{path}{name} has {bad} non-finite entries of {tensor.numel()} in {tensor.dtype}, so {folder} would not load and was not "
                "written: the model is damaged, or its numbers need a wider dtype (bfloat16 or float32)"
            )


def _describe_outline(model: PreTrainedModel) -> PreTrainedModel:
    """Put an outline into the state in which `save` leaves the model: described, or fused again."""
    describe(model)
    state_tying(model)
    if not is_described(model) and has_entry(model.config):
        fuse_(model)
    return model


def _write_without_weights(model: PreTrainedModel, processor: Processor, draft: Path) -> Path:
    """Write a folder with everything but the weights."""
    save_model(model, draft, max_shard_size="5GB", state_dict={})
    processor.save_pretrained(draft)
    return draft


def _tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors of an outline under their names in the files, as `save_pretrained` writes them."""
    own = remove_tied_weights_from_state_dict(dict(model.state_dict()), model)
    tensors: dict[str, Tensor] = revert_weight_conversion(model, own)
    return tensors


def _differ(one: torch.dtype, other: torch.dtype) -> bool:
    return one != other and one.is_floating_point


def _remedy(wrong: Mapping[str, set[str]], model: PreTrainedModel, loaded: PreTrainedModel) -> str:
    if type(model) is not type(loaded):
        return (
            "mgaa.load only takes models with a language-modelling head; model.save_pretrained(folder) keeps this class"
        )
    if all("dtype" in what for what in wrong):
        return f"Give it one dtype, model.to({model.dtype})"
    if wrong.keys() == {"unexpected"} and all(name.endswith(".bias") for name in wrong["unexpected"]):
        return "Leave the biases out, or fold the model by mgaa.densify, which looks for a class that has room for them"
    if wrong.keys() == {"missing"} and wrong["missing"] <= model.state_dict().keys():
        return "Each is tied to another tensor: set model.config.tie_word_embeddings, or give it a tensor of its own"
    return "Restore the model.config that the model was made with, or remove what was added to it"
