"""A compressed model folded back to plain linears: `W' = B A`, for programs that do not support low rank.

Layers that were split (`mgaa.models.fused`) are fused again, because a plain checkpoint has one of transformers' own classes, and pruned
FFNs of different widths are padded with zeros (`mgaa.models.widths`). The speed and the size of the factors are lost, the function is kept.
Only biases are an obstacle: a centred factorizer (`afm`) gives every linear one, and most architectures have linears without. Three
solutions are tried in this order, each exact: the class has room for the bias as it is; it has with a flag of its config (`attention_bias`
or `mlp_bias` of Llama, `bias` of Falcon...), and linears without a bias get zeros; or the model is a Llama in all but name (Mistral and
Qwen2 without sliding windows), and becomes one. Anything else is refused.
"""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from mgaa.checkpoints.folder import backbone_files
from mgaa.checkpoints.format import describe
from mgaa.checkpoints.load import load
from mgaa.checkpoints.output_folder import resolve_target
from mgaa.checkpoints.ownership import check_apart, check_folder, content_key
from mgaa.checkpoints.save import save_blockwise
from mgaa.checkpoints.tied_weights import state_tying
from mgaa.errors import UsageError
from mgaa.inputs.readers import coerce_arguments, path, to_densify
from mgaa.models.architectures import DECODER, architecture_of, decoder_blocks, has_entry, is_multimodal
from mgaa.models.fused import fuse_block_, fuse_parts_, fused_bias, fused_parts
from mgaa.models.lowrank import low_rank_layers
from mgaa.models.widths import widen_block_, widest

# Same blocks, same names, same arithmetic as Llama unless a sliding window is set; compare modeling_mistral.py and
# modeling_qwen2.py with modeling_llama.py in
# https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers/models
LIKE_LLAMA = ("mistral", "qwen2")
BIAS_FLAGS = ("attention_bias", "mlp_bias", "bias", "use_bias")


@coerce_arguments(model=to_densify)
def densify(model: PreTrainedModel) -> PreTrainedModel:
    """Fold every low-rank layer into an `nn.Linear` and return a model that `from_pretrained` can load, once saved, without mgaa.

    The weights are those of `model`, which is changed in place and should not be used again: where its class has no room for the added
    biases, the returned model is a `LlamaForCausalLM` that owns them.

    Raises:
        UsageError: no class of transformers that is known here can hold the biases, or the argument is a streamed model (`densify_folder`)
            or not a model (`mgaa.inputs.readers`); it stays unchanged.
    """
    state_tying(model)
    wide = widest(model)
    shell = _shell(model, wide)
    expected = set(shell.state_dict())
    for name, layer in low_rank_layers(model).items():
        model.set_submodule(name, layer.dense())
    if has_entry(model.config):
        for index in range(len(decoder_blocks(model))):
            _own_form_(model, index, shell, wide)
        _restore_parts_(model, shell)
    _fill_biases(model, expected)
    model.__dict__.pop(
        "_weight_conversions", None
    )  # those of the compressed files; transformers determines the model's own again
    if _is_alike(model, shell):
        own, other = model.config.get_text_config(), shell.config.get_text_config()
        for field in (*BIAS_FLAGS, *((architecture_of(model.config).width,) if wide else ())):
            if hasattr(other, field):
                setattr(own, field, getattr(other, field))
        describe(model)
        return model
    return _move_tensors(model, shell)


@coerce_arguments(source=path, target=path)
def densify_folder(source: str | Path, target: str | Path, *, max_shard_size: int = 5 * 10**9) -> None:
    """Densify a checkpoint that need not fit into memory: from folder to folder, one block after the other.

    Raises:
        UsageError: as `densify`; or the target holds files that this package did not write, or overlaps with the source.
        InputError, NumericalError: the source cannot be read (`mgaa.load`).
        ResourceError: the target cannot be written. The next call for the same source resumes from what was written.
    """
    check_apart(Path(target), Path(source), "the source")
    check_folder(resolve_target(target))
    model, tokenizer = load(source, device="cpu", stream=True)
    wide = widest(model)
    shell = _shell(model, wide)
    expected = set(shell.state_dict())
    blocks, path = decoder_blocks(model), architecture_of(model.config).blocks

    def change(index: int) -> None:
        for name, layer in low_rank_layers(blocks[index]).items():
            blocks[index].set_submodule(name, layer.dense())
        _own_form_(model, index, shell, wide)
        _fill_biases(blocks[index], expected, f"{path}.{index}.")

    for name, layer in low_rank_layers(model).items():
        if not name.startswith(f"{path}."):  # part of a vision tower or a projector, which is in memory
            model.set_submodule(name, layer.dense())
    if has_entry(model.config):
        _restore_parts_(model, shell)
    model.__dict__.pop("_weight_conversions", None)
    shell.generation_config = model.generation_config
    key = content_key(backbone_files(source))
    save_blockwise(model, tokenizer, target, change=change, shell=shell, max_shard_size=max_shard_size, key=key)


def _own_form_(model: PreTrainedModel, index: int, shell: PreTrainedModel, wide: int | None) -> None:
    """Give a block the modules that transformers builds, with FFNs of equal width."""
    entry, block, empty = (
        architecture_of(model.config),
        decoder_blocks(model)[index],
        decoder_blocks(shell)[index],
    )
    if wide is not None:
        widen_block_(model, index, wide)
    if _is_alike(model, shell):
        fuse_block_(entry, block, empty)


def _restore_parts_(model: PreTrainedModel, shell: PreTrainedModel) -> None:
    """Give the compressed parts of a vision-language model outside the decoder the modules that transformers builds."""
    parts = [part for part in fused_parts(model) if part not in DECODER]
    if parts and type(shell) is type(model):
        fuse_parts_(model, shell, parts)


def _shell(model: PreTrainedModel, wide: int | None) -> PreTrainedModel:
    """Return an empty model of the first class and config that has room for every bias."""
    linears = {
        name.removesuffix(".B.bias").removesuffix(".bias") for name in model.state_dict() if name.endswith(".bias")
    }
    biases = {fused_bias(model, name) for name in linears}
    for kind, config in _candidates(model, wide):
        with torch.device("meta"):
            shell = kind(config)
        missing = sorted(biases - set(shell.state_dict()))
        if not missing:
            return shell
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    remedy = f", or set model.config.sliding_window = None if no context exceeds its {window} tokens" if window else ""
    first = missing[0].removesuffix(".bias").removesuffix("_bias")
    raise UsageError(
        f"{type(model).__name__} has no bias for {first} ({len(missing)} such), so a plain "
        "checkpoint cannot hold this model: compress with factors.method=whitened, which adds no bias, or keep "
        f"the low-rank checkpoint{remedy}"
    )


def _candidates(model: PreTrainedModel, wide: int | None) -> Iterator[tuple[type[PreTrainedModel], PreTrainedConfig]]:
    config = copy.deepcopy(model.config)
    if wide is not None:
        setattr(config.get_text_config(), architecture_of(config).width, wide)
    text = config.get_text_config()
    for flags in ((), *((flag,) for flag in BIAS_FLAGS), BIAS_FLAGS[:2]):
        if all(hasattr(text, flag) for flag in flags):
            yield type(model), _config_with_flags(config, flags)
    if text.model_type in LIKE_LLAMA and getattr(text, "sliding_window", None) is None:
        fields = {field.name for field in dataclasses.fields(LlamaConfig)}
        twin = LlamaConfig(**{key: value for key, value in text.to_dict().items() if key in fields})
        twin._attn_implementation, twin.name_or_path = text._attn_implementation, config.name_or_path
        if is_multimodal(config):
            config.text_config = twin
            config.__dict__.pop("quantization_config", None)
            yield type(model), _config_with_flags(config, BIAS_FLAGS[:2])
        else:
            yield LlamaForCausalLM, _config_with_flags(twin, BIAS_FLAGS[:2])


def _config_with_flags(config: PreTrainedConfig, flags: tuple[str, ...]) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    for flag in flags:
        setattr(config.get_text_config(), flag, True)
    return config


def _is_alike(model: PreTrainedModel, shell: PreTrainedModel) -> bool:
    """Return whether the shell has the class of the model, and its decoder the class of the model's decoder."""
    return (
        type(shell) is type(model)
        and shell.config.get_text_config().model_type == model.config.get_text_config().model_type
    )


def _fill_biases(module: nn.Module, expected: set[str], prefix: str = "") -> None:
    """Set zeros where the class has a bias and the linear has none; `prefix` is the name of the module in the model."""
    for name, linear in module.named_modules():
        if isinstance(linear, nn.Linear) and linear.bias is None and f"{prefix}{name}.bias" in expected:
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))


def _move_tensors(model: PreTrainedModel, shell: PreTrainedModel) -> PreTrainedModel:
    """Move the tensors of the model to the shell: parameters, and the buffers that are not saved (rotary frequencies)."""
    shell.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():
        owner, _, key = name.rpartition(".")
        setattr(shell.get_submodule(owner), key, buffer)
    shell.tie_weights()
    shell.generation_config = model.generation_config
    shell.requires_grad_(any(parameter.requires_grad for parameter in model.parameters()))
    return shell.train(model.training)
