"""Tiny random models of every family, their tokenizer, and low-rank factors of all their linears: no network, no training."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerFast

from mgaa.checkpoints.load import class_of
from mgaa.checkpoints.save import apply_factors
from mgaa.models.architectures import is_multimodal, matrices_of
from mgaa.models.entries import ARCHITECTURES, MULTIMODAL
from mgaa.models.fused import unfuse_
from mgaa.models.lowrank import Factors

SHAPE: dict[str, object] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 61,
    "eos_token_id": 62,
}
MIXTURE: dict[str, object] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
ROPE_3D: dict[str, object] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
SCALED_ROPE: dict[str, object] = {
    "rope_type": "default",
    "rope_theta": 1e4,
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 16,
}
OF_FAMILY: dict[str, dict[str, object]] = {
    "mistral": {"sliding_window": None},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "smollm3": {"no_rope_layers": [1, 0], "pad_token_id": None},  # one block with rotary positions, one without
    "ministral3": {"head_dim": 8, "rope_parameters": SCALED_ROPE},
    "gpt_oss": {"head_dim": 8, "sliding_window": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "granite": {"residual_multiplier": 0.3, "attention_multiplier": 0.4},
    "phi3": {"pad_token_id": 60},
    "falcon": {"ffn_hidden_size": 48},
    "gpt2": {"n_inner": 48},
    "qwen2_5_vl_text": {"rope_parameters": ROPE_3D},
    "qwen3_vl_text": {"rope_parameters": ROPE_3D, "head_dim": 8},
    "qwen2_moe": {"mlp_only_layers": [0]},  # a dense FFN in the first block, experts in the second
}
"""What tiny models of a family need beside SHAPE; most families need nothing."""

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "falcon, grouped heads": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon, one norm": (
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "falcon, sequential": (
        "falcon",
        {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ),
    "gpt_neox, sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "llama, biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3_moe, mixed": ("qwen3_moe", {"decoder_sparse_step": 2}),
}
"""What the fields of a config change inside a family."""

CLIP: dict[str, object] = {
    "model_type": "clip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 8,
}
SEEING: dict[str, dict[str, object]] = {
    "llava": {"vision_config": CLIP},
    "llava_next": {"vision_config": CLIP, "image_grid_pinpoints": [[16, 32], [32, 16]]},
    "qwen2_5_vl": {
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        }
    },
    "qwen3_vl": {
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        }
    },
    "gemma3": {
        "vision_config": {**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        "mm_tokens_per_image": 4,
    },
    "mistral3": {"vision_config": {**CLIP, "model_type": "pixtral", "head_dim": 12}, "spatial_merge_size": 2},
}
"""What models that see need around their decoders."""
TOKENS: dict[str, object] = {
    "image_token_id": 63,
    "vision_start_token_id": 58,
    "vision_end_token_id": 59,
    "video_token_id": 57,
}
DECODERS = {
    "llava": "llama",
    "llava_next": "mistral",
    "mistral3": "ministral3",
    "gemma3": "gemma3_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
}
WITHIN = {"qwen2_5_vl_text", "qwen3_vl_text", "ministral3"}
"""Decoders that are looked at inside the models that see."""

SINGLE = sorted(ARCHITECTURES.keys() - WITHIN)
ALIKE = {"llava_next"}  # to llava, in all but its images, which tests/mgaa/test_seeing.py looks at
FAMILIES = [*SINGLE, *sorted(MULTIMODAL.keys() - ALIKE), *VARIANTS]
"""Every entry, and the variants; `tiny` takes both."""
REPRESENTATIVES = {"llama", "phi3", "gpt2", "falcon", "qwen2_moe", "llava", "llama, biased"}
"""One family of each kind: separate and fused linears, Conv1D, parallel sublayers, experts, images, biases."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what runs over many families, but for the representative ones: `make test-all` meets every family."""
    tests: dict[str, list[tuple[pytest.Item, str]]] = {}
    for item in items:
        family = getattr(getattr(item, "callspec", None), "params", {}).get("family")
        if family is not None:
            tests.setdefault(item.nodeid.partition("[")[0], []).append((item, family))
    for cases in tests.values():
        if REPRESENTATIVES & {family for _, family in cases}:
            for item, family in cases:
                if family not in REPRESENTATIVES:
                    item.add_marker(pytest.mark.slow)


def is_mixture(family: str) -> bool:
    return family in ARCHITECTURES and bool(ARCHITECTURES[family].experts)


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    """`tiny("llama", tie_word_embeddings=True)`: two random blocks with grouped-query attention, biases included, float32."""

    def build(family: str = "llama", **settings: object) -> PreTrainedModel:
        torch.manual_seed(0)
        family, varied = VARIANTS.get(family, (family, {}))
        if family in MULTIMODAL:
            return tiny_multimodal(family, settings)
        given = SHAPE | MIXTURE | OF_FAMILY.get(family, {}) | varied | settings
        config = AutoConfig.for_model(
            family, **{key: value for key, value in given.items() if key not in MIXTURE or is_mixture(family)}
        )
        return biased(class_of(config).from_config(config, experts_implementation="eager").eval())

    return build


def tiny_multimodal(family: str, settings: dict[str, object]) -> PreTrainedModel:
    """A model that sees, with a decoder of the same shape; the settings are the decoder's, but for those that every model has."""
    whole = {key: settings.pop(key) for key in ("tie_word_embeddings",) if key in settings}
    text = SHAPE | OF_FAMILY.get(DECODERS[family], {}) | whole | settings
    config = AutoConfig.for_model(
        family, text_config={"model_type": DECODERS[family], **text}, **SEEING[family], **TOKENS, **whole
    )
    model = biased(class_of(config).from_config(config).eval())
    assert is_multimodal(model.config)
    return model


def reload(folder: Path, **given: object) -> Any:
    """What transformers makes of a saved model, by its auto class."""
    return class_of(AutoConfig.from_pretrained(folder)).from_pretrained(folder, **given)


def biased(model: PreTrainedModel) -> PreTrainedModel:
    """The model with biases that are not zero; small ones where the router has some, so that every expert has tokens."""
    biases = {name: parameter for name, parameter in model.named_parameters() if name.endswith("bias")}
    std = 0.1 if any(name.endswith("router.bias") for name in biases) else 1.0
    for parameter in biases.values():
        nn.init.normal_(parameter, std=std)
    return model


@pytest.fixture
def words() -> PreTrainedTokenizerFast:
    """A tokenizer of 63 words, `w0` to `w59` and three special ones."""
    vocabulary = {f"w{i}": i for i in range(60)} | {"<unk>": 60, "<s>": 61, "</s>": 62}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def svd_factors(linear: nn.Linear, keep: float, bias: bool) -> Factors:
    """The best factors of that share of the full rank; an added bias is random, for it must not matter what it is."""
    u, s, v = torch.linalg.svd(linear.weight.detach().double(), full_matrices=False)
    rank = max(1, round(keep * len(s)))
    own = None if linear.bias is None else linear.bias.detach()
    added = torch.randn(linear.out_features, dtype=linear.weight.dtype) if bias and own is None else own
    root = s[:rank].sqrt()
    A, B = root[:, None] * v[:rank], u[:, :rank] * root
    return Factors(A.contiguous(), B.contiguous(), added)  # as files give them back: kernels round by the strides


@pytest.fixture
def compress() -> Callable[..., PreTrainedModel]:
    """`compress(model, keep=0.5, bias=True)`: put the SVD of every linear of the blocks in its place, at a share of full rank."""

    def shrink(model: PreTrainedModel, keep: float = 0.5, bias: bool = True) -> PreTrainedModel:
        linears = {matrix.name: model.get_submodule(matrix.name) for matrix in matrices_of(unfuse_(model))}
        apply_factors(model, {name: svd_factors(linear, keep, bias) for name, linear in linears.items()})
        return model

    return shrink


@pytest.fixture
def logits() -> Callable[[PreTrainedModel], Tensor]:
    """The model's logits on two fixed sequences."""
    tokens = torch.arange(40).reshape(2, 20) * 7 % 60

    def forward(model: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(tokens.to(model.device)).logits.cpu()
        return found

    return forward


# The same examples in every run, on every machine, however slow; more of them where `CI` is set.
examples = 40 if os.environ.get("CI") else 15
settings.register_profile("deterministic", derandomize=True, deadline=None, database=None, max_examples=examples)
settings.load_profile("deterministic")
