"""What a GGUF file says of its model: the config, the tokenizer and the place of every tensor, by the tables of transformers.

Those tables have gaps, and transformers is silent about them: it takes its own default for a setting that it does not read, drops a tensor
without a place (the scaled rotary frequencies of Llama 3, say), and splits text as GPT-2 where it does not know the rule. Here a gap is
closed, or the file is refused; only headers are read. See `modeling_gguf_pytorch_utils.py` and `integrations/ggml.py` in
https://github.com/huggingface/transformers/tree/v5.23.0/src/transformers, and for the keys
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)

from mgaa.boundary import translate_errors
from mgaa.errors import InputError, UsageError
from mgaa.inputs.readers import FLOATING
from mgaa.models.architectures import architecture_of
from mgaa.models.processors import Processor

FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""Types of ggml that are not quantized; norms are float32 in every file, so the first one that occurs is the model's."""

SETTINGS = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attention.value_length": "head_dim",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "expert_count": "num_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_used_count": "num_experts_per_tok",
    "feed_forward_length": "intermediate_size",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.dimension_count": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
"""Names in a config of the settings in a file, below the name of its architecture."""

DIGITS = ("smollm", "starcoder")
"""Rules by which text is split into single digits and then as by GPT-2, as these models publish it (`pre_tokenizer` of tokenizer.json)."""

UNQUANTISED = "start from the unquantised model"


def read_gguf(file: Path) -> Any:
    """Open a file as a `gguf.GGUFReader`; checks its header, its size, and that its tensors can be dequantized.

    Raises:
        UsageError: the package `gguf` is missing.
        InputError: the file is damaged, a part of a model, or has tensors of an unknown type.
    """
    try:
        from gguf import GGUFReader, dequantize
    except ImportError as error:
        raise UsageError(f"{file} is a GGUF file, which needs the package gguf: pip install 'mgaa[gguf]'") from error
    newer = "fetch it again, or, if a tensor has a newer type, update the package gguf"
    with translate_errors(f"{file} cannot be read as a GGUF file", newer):
        reader = GGUFReader(file)
    if (parts := value(reader, "split.count") or 1) > 1:
        raise InputError(f"{file} is one of {parts} parts of a model: join them (llama-gguf-split --merge)")
    for tensor in {tensor.tensor_type: tensor for tensor in reader.tensors}.values():
        what = f"{tensor.name} in {file} is of the type {tensor.tensor_type.name}, which cannot be dequantized"
        with translate_errors(what, "use another quantization of the model"):
            dequantize(tensor.data[:1], tensor.tensor_type)
    return reader


def value(reader: Any, key: str) -> Any:
    """Return an entry of the header, or None."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def build_model(reader: Any, file: Path, dtype: str = "auto") -> PreTrainedModel:
    """Build the model of a file on the meta device.

    Args:
        dtype: `auto` for bfloat16, or that of a file without quantized tensors.

    Raises:
        UsageError: the dtype.
        InputError: its architecture has no entry, or transformers does not read it, or one of its settings.
    """
    types = {tensor.tensor_type.name for tensor in reader.tensors}
    stored = next((name for kind, name in FLOATS.items() if kind in types), "float32")
    chosen = dtype if dtype != "auto" else stored if types <= FLOATS.keys() else "bfloat16"
    if chosen not in (names := [str(each).removeprefix("torch.") for each in FLOATING]):
        raise UsageError(f"dtype {dtype!r}: expected one of auto, {', '.join(names)}")
    config = _config(reader, file)
    architecture_of(config)
    with translate_errors(f"transformers cannot build the model of {file}", UNQUANTISED), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, chosen))
    model.config.architectures = [type(model).__name__]
    return model


def _config(reader: Any, file: Path) -> PreTrainedConfig:
    family = str(value(reader, "general.architecture"))
    counted = {tensor.name.split(".")[1] for tensor in reader.tensors if tensor.name.startswith("blk.")}
    if (blocks := value(reader, f"{family}.block_count")) != len(counted):
        raise InputError(f"{file} has {len(counted)} blocks, its header says {blocks}: fetch it again")
    with translate_errors(f"transformers cannot read the config of {file}", UNQUANTISED):
        given = load_gguf_checkpoint(file, return_tensors=False)["config"]
        default = AutoConfig.for_model(given["model_type"])
    given.pop("_model_name_or_path", None)  # its title
    for mark in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given.setdefault(mark, None)  # not the default, which belongs to another vocabulary
    for key in (key for key in reader.fields if key.startswith(f"{family}.")):
        name, found = SETTINGS.get(key.removeprefix(f"{family}.")), value(reader, key)
        if name is None and not _is_neutral(reader, key, found):
            raise InputError(f"{file} sets {key} to {found!r}, which transformers does not read: {UNQUANTISED}")
        if name is not None and (hasattr(default, name) or name == "rope_theta"):
            given.setdefault(name, found)
    # numbers are float32 in the file: 1e-05 instead of 9.999999747378752e-06
    given = {key: float(str(np.float32(found))) if isinstance(found, float) else found for key, found in given.items()}
    with translate_errors(f"transformers cannot read the config of {file}", UNQUANTISED):
        config: PreTrainedConfig = AutoConfig.for_model(**given)
    return config


def _is_neutral(reader: Any, key: str, found: Any) -> bool:
    """Whether a setting changes nothing."""
    if key.endswith(".rope.scaling.original_context_length"):
        return bool(found == value(reader, f"{key.partition('.')[0]}.context_length"))
    return not found or found == "none"


def build_tokenizer(reader: Any, file: Path) -> Processor:
    """Build the tokenizer of a file.

    Raises:
        InputError: transformers does not know it, or the rule by which it splits text.
    """
    with translate_errors(f"transformers cannot read the tokenizer of {file}", UNQUANTISED):
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    model, split = value(reader, "tokenizer.ggml.model"), value(reader, "tokenizer.ggml.pre")
    if model == "gpt2" and split in DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    elif model == "gpt2" and split not in ("gpt-2", *GGUF_PRE_TOKENIZER_SPLITS):
        raise InputError(
            f"the tokenizer in {file} splits text by the rule {split!r}, which transformers does not know: {UNQUANTISED}"
        )
    _drop_added(tokenizer, len(reader.get_field("tokenizer.ggml.tokens").data))
    tokenizer.name_or_path = ""
    found: Processor = tokenizer
    return found


def _drop_added(tokenizer: Any, size: int) -> None:
    """Drop the tokens that the file does not have: GPT-2's <|endoftext|>, which transformers adds where it is missing."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    own = [token for token in backend["added_tokens"] if token["id"] < size]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend | {"added_tokens": own}))


def place_tensors(reader: Any, model: PreTrainedModel, file: Path) -> dict[str, str]:
    """Map the tensors of a file to those of the model.

    Raises:
        InputError: a tensor has no place, is missing, or has another size.
    """
    expected = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    # without submodules: transformers visits each, for models that were converted without a head, and takes a third of the time for it
    shallow = SimpleNamespace(config=model.config, state_dict=lambda: expected, named_children=list)
    names: dict[str, str] = get_gguf_hf_weights_map(shallow, tensor_processor(model))
    found = Counter[str]()
    for tensor in reader.tensors:
        place = names.get(tensor.name) or names.get(
            tensor.name.removesuffix(".weight")
        )  # stacked experts have no modules
        if place is None:
            raise InputError(f"{tensor.name} in {file} has no place in {type(model).__name__}: {UNQUANTISED}")
        found[place] += int(tensor.n_elements)
    tied = model.get_expanded_tied_weights_keys()
    for name, size in expected.items():
        if found[name] != size and not (name in tied and found[name] == 0):
            raise InputError(f"{file} has {found[name]} numbers for {name}, expected {size}: {UNQUANTISED}")
    return names


def tensor_processor(model: PreTrainedModel) -> TensorProcessor:
    """Return transformers' inverse of what llama.cpp does to the tensors of this family."""
    family: str = model.config.model_type
    name = family.removesuffix("_text") if family.endswith("_text") else family.replace("_moe", "moe")
    found: TensorProcessor = TENSOR_PROCESSORS.get(name, TensorProcessor)(config=model.config.to_dict())
    return found
