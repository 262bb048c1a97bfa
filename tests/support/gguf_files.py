"""Small GGUF files as llama.cpp's converter writes them (`convert_hf_to_gguf.py`): its names, its order of rows, its keys."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.support.laboratory import documents, write_tokenizer

Arrays = dict[str, np.ndarray[Any, Any]]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def tiny_llama(*, tied: bool = True) -> PreTrainedModel:
    """A random Llama with grouped-query attention, whose rows are whole blocks of 32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_theta=50000.0,
        rms_norm_eps=1e-5,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()


def llama_arrays(model: PreTrainedModel) -> Arrays:
    """The tensors under the names of llama.cpp, with the rows of q and k in its order; without a tied head."""
    config, arrays = model.config, Arrays()
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        place, array = name.removesuffix(".weight"), tensor.numpy()
        if place.startswith("model.layers."):
            index, place = place.removeprefix("model.layers.").split(".", 1)
            heads = {
                "self_attn.q_proj": config.num_attention_heads,
                "self_attn.k_proj": config.num_key_value_heads,
            }.get(place)
            if heads is not None:
                halves = array.reshape(heads, 2, array.shape[0] // heads // 2, -1)
                array = halves.swapaxes(1, 2).reshape(array.shape)
            arrays[f"blk.{index}.{NAMES[place]}.weight"] = array
        else:
            arrays[f"{NAMES[place]}.weight"] = array
    return arrays


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    matrices: str = "Q8_0",
    embedding: str = "Q8_0",
    architecture: str = "llama",
    split: str = "gpt-2",
    settings: Mapping[str, Any] | None = None,
    change: Callable[[Arrays], object] = lambda arrays: None,
) -> Path:
    """Write a Llama; its vectors stay float32.

    Args:
        matrices, embedding: types of ggml.
        split: `tokenizer.ggml.pre`.
        settings: further integers or texts of the header.
        change: alters the tensors before they are written.
    """
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_name("Tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, value in (settings or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    _add_tokenizer(writer, path.parent, config.vocab_size, split)
    arrays = llama_arrays(model)
    change(arrays)
    for name, array in arrays.items():
        kind = embedding if name == "token_embd.weight" else matrices if array.ndim == 2 else "F32"
        chosen = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(array, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path, rows: int, split: str) -> None:
    from tokenizers import Tokenizer

    place = folder / "tokenizer"
    if not place.exists():
        write_tokenizer(place, documents(seed=1, number=10))
    backend = Tokenizer.from_file(str(place / "tokenizer.json"))
    size = backend.get_vocab_size()
    tokens = [backend.id_to_token(index) for index in range(size)] + [f"[PAD{index}]" for index in range(size, rows)]
    merges = _merges(place / "tokenizer.json")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, *[1] * (size - 2), *[5] * (rows - size)])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT)


def _merges(path: Path) -> list[str]:
    import json

    return [" ".join(pair) for pair in json.loads(path.read_text(encoding="utf-8"))["model"]["merges"]]
