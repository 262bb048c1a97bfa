"""Entries of architectures, as data: locations of the compressible linears of every known decoder, vision tower and multimodal model.

One frozen entry per `model_type` of transformers. An entry names the list of decoder blocks, the residual branches (*sublayers*) of one
block, and inside a sublayer the linears, grouped by shared input: `q,k,v` read one tensor, so one second moment serves all three. It also
records what is unusual: layers that hold several matrices in one tensor (split by `mgaa.models.fused`), stacked experts, branches that are
scaled or computed in parallel. No other module of the library names a model.

To support another architecture, add an entry here (about ten lines, with the path of its modelling file below
https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers); the contract tests find it by themselves. Data only: an entry
enters the cache keys of a backbone through its artifact, so a new one voids nothing.
"""

from dataclasses import replace

from mgaa.models.architecture_schema import Architecture, Fused, Multimodal, Sublayer

_SEPARATE = ("q_proj k_proj v_proj", "o_proj")
_GATED = ("gate_proj up_proj", "down_proj")
_EXPERTS = ("experts.*.gate_proj experts.*.up_proj", "experts.*.down_proj")

# Pre-norm blocks with separate q, k, v, o and a gated FFN.
_GATED_PRE_NORM = Architecture(
    blocks="model.layers",
    sublayers=(Sublayer("attention", "self_attn", _SEPARATE), Sublayer("ffn", "mlp", _GATED)),
)

# A norm on the output of each branch, before it joins the stream.
_GATED_POST_NORM = Architecture(
    blocks="model.layers",
    sublayers=(
        Sublayer("attention", "self_attn", _SEPARATE, output="post_attention_layernorm"),
        Sublayer("ffn", "mlp", _GATED, output="post_feedforward_layernorm"),
    ),
)

# Experts, shared experts and, in some blocks, a dense FFN; the router and the gate of the shared expert (one row) stay unchanged.
_MIXTURE = Architecture(
    blocks="model.layers",
    sublayers=(
        Sublayer("attention", "self_attn", _SEPARATE),
        Sublayer(
            "ffn",
            "mlp",
            (*_GATED, *_EXPERTS, "shared_expert.gate_proj shared_expert.up_proj", "shared_expert.down_proj"),
        ),
    ),
    experts="mlp.experts",
    untouched=("mlp.gate", "mlp.shared_expert_gate"),
)

ARCHITECTURES: dict[str, Architecture] = {
    # models/llama/modeling_llama.py
    "llama": _GATED_PRE_NORM,
    # models/mistral/modeling_mistral.py (sliding-window attention, same modules)
    "mistral": _GATED_PRE_NORM,
    # models/qwen2/modeling_qwen2.py (biases on q, k, v)
    "qwen2": _GATED_PRE_NORM,
    # models/qwen3/modeling_qwen3.py (norms on the heads of q and k, inside the sublayer)
    "qwen3": _GATED_PRE_NORM,
    # models/gemma2/modeling_gemma2.py (soft-capped logits, inside the attention and after the head)
    "gemma2": _GATED_POST_NORM,
    # models/gemma3/modeling_gemma3.py (the text model)
    "gemma3_text": _GATED_POST_NORM,
    # models/smollm3/modeling_smollm3.py (every fourth block without rotary positions)
    "smollm3": _GATED_PRE_NORM,
    # models/olmo2/modeling_olmo2.py (norms only after the branches)
    "olmo2": _GATED_POST_NORM,
    # models/granite/modeling_granite.py
    "granite": Architecture(_GATED_PRE_NORM.blocks, _GATED_PRE_NORM.sublayers, scale="residual_multiplier"),
    # models/starcoder2/modeling_starcoder2.py
    "starcoder2": Architecture(
        blocks="model.layers",
        sublayers=(Sublayer("attention", "self_attn", _SEPARATE), Sublayer("ffn", "mlp", ("c_fc", "c_proj"))),
    ),
    # models/phi/modeling_phi.py (attention and FFN read the same norm)
    "phi": Architecture(
        blocks="model.layers",
        sublayers=(
            Sublayer("attention", "self_attn", ("q_proj k_proj v_proj", "dense")),
            Sublayer("ffn", "mlp", ("fc1", "fc2")),
        ),
        parallel=True,
    ),
    # models/phi3/modeling_phi3.py
    "phi3": Architecture(
        blocks="model.layers",
        sublayers=(
            Sublayer("attention", "self_attn", ("qkv_proj.q qkv_proj.k qkv_proj.v", "o_proj")),
            Sublayer("ffn", "mlp", ("gate_up_proj.gate gate_up_proj.up", "down_proj")),
        ),
        fused=(
            Fused("self_attn.qkv_proj", ("q", "k", "v"), heads="stacked"),
            Fused("mlp.gate_up_proj", ("gate", "up")),
        ),
    ),
    # models/opt/modeling_opt.py (the FFN has no module of its own)
    "opt": Architecture(
        blocks="model.decoder.layers",
        sublayers=(
            Sublayer("attention", "self_attn", ("q_proj k_proj v_proj", "out_proj")),
            Sublayer("ffn", "", ("fc1", "fc2"), output="fc2"),
        ),
        width="ffn_dim",
    ),
    # models/gpt2/modeling_gpt2.py (Conv1D: the weights are transposed)
    "gpt2": Architecture(
        blocks="transformer.h",
        sublayers=(
            Sublayer("attention", "attn", ("c_attn.q c_attn.k c_attn.v", "c_proj")),
            Sublayer("ffn", "mlp", ("c_fc", "c_proj")),
        ),
        width="n_inner",
        fused=(Fused("attn.c_attn", ("q", "k", "v"), heads="stacked"),),
    ),
    # models/gpt_neox/modeling_gpt_neox.py
    "gpt_neox": Architecture(
        blocks="gpt_neox.layers",
        sublayers=(
            Sublayer("attention", "attention", ("query_key_value.q query_key_value.k query_key_value.v", "dense")),
            Sublayer("ffn", "mlp", ("dense_h_to_4h", "dense_4h_to_h")),
        ),
        fused=(Fused("attention.query_key_value", ("q", "k", "v"), heads="grouped"),),
        parallel=("use_parallel_residual",),
    ),
    # models/falcon/modeling_falcon.py (one head of k and v, some, or as many as of q)
    "falcon": Architecture(
        blocks="transformer.h",
        sublayers=(
            Sublayer("attention", "self_attention", ("query_key_value.q query_key_value.k query_key_value.v", "dense")),
            Sublayer("ffn", "mlp", ("dense_h_to_4h", "dense_4h_to_h")),
        ),
        width="ffn_hidden_size",
        fused=(Fused("self_attention.query_key_value", ("q", "k", "v"), heads="grouped"),),
        parallel=("parallel_attn",),
        returns="tuple",
    ),
    # models/mixtral/modeling_mixtral.py
    "mixtral": _MIXTURE,
    # models/qwen2_moe/modeling_qwen2_moe.py (a shared expert with a gate of its own)
    "qwen2_moe": _MIXTURE,
    # models/qwen3_moe/modeling_qwen3_moe.py
    "qwen3_moe": _MIXTURE,
    # models/olmoe/modeling_olmoe.py
    "olmoe": _MIXTURE,
    # models/gpt_oss/modeling_gpt_oss.py (experts with biases, gate and up interleaved, a clamped gate)
    "gpt_oss": Architecture(
        blocks="model.layers",
        sublayers=(Sublayer("attention", "self_attn", _SEPARATE), Sublayer("ffn", "mlp", _EXPERTS)),
        experts="mlp.experts",
        untouched=("mlp.router",),
    ),
    # models/ministral3/modeling_ministral3.py (queries scaled by position, inside the attention)
    "ministral3": _GATED_PRE_NORM,
    # models/qwen2_5_vl/modeling_qwen2_5_vl.py (the decoder of qwen2_5_vl, which is never alone)
    "qwen2_5_vl_text": _GATED_PRE_NORM,
    # models/qwen3_vl/modeling_qwen3_vl.py (the decoder of qwen3_vl)
    "qwen3_vl_text": _GATED_PRE_NORM,
}

_CLIP = Architecture(
    blocks="encoder.layers",
    sublayers=(
        Sublayer("attention", "self_attn", ("q_proj k_proj v_proj", "out_proj")),
        Sublayer("ffn", "mlp", ("fc1", "fc2")),
    ),
)

VISION: dict[str, Architecture] = {
    # models/clip/modeling_clip.py
    "clip_vision_model": _CLIP,
    # models/siglip/modeling_siglip.py
    "siglip_vision_model": _CLIP,
    # models/qwen2_5_vl/modeling_qwen2_5_vl.py
    "qwen2_5_vl_vision": Architecture(
        blocks="blocks",
        sublayers=(Sublayer("attention", "attn", ("qkv.q qkv.k qkv.v", "proj")), Sublayer("ffn", "mlp", _GATED)),
        fused=(Fused("attn.qkv", ("q", "k", "v")),),
    ),
    # models/qwen3_vl/modeling_qwen3_vl.py
    "qwen3_vl_vision": Architecture(
        blocks="blocks",
        sublayers=(
            Sublayer("attention", "attn", ("qkv.q qkv.k qkv.v", "proj")),
            Sublayer("ffn", "mlp", ("linear_fc1", "linear_fc2")),
        ),
        fused=(Fused("attn.qkv", ("q", "k", "v")),),
    ),
    # models/pixtral/modeling_pixtral.py
    "pixtral": Architecture(
        blocks="transformer.layers",
        sublayers=(Sublayer("attention", "attention", _SEPARATE), Sublayer("ffn", "feed_forward", _GATED)),
    ),
}
"""Vision towers, by their own `model_type`, with paths from the tower."""

_PROJECTOR = Architecture(
    "model.multi_modal_projector", (Sublayer("ffn", "", ("linear_1", "linear_2")),), residual=False
)

_LLAVA = Multimodal(
    "model.language_model",
    vision="model.vision_tower",
    projector=_PROJECTOR,
    layer="vision_feature_layer",
)

MULTIMODAL: dict[str, Multimodal] = {
    # models/llava/modeling_llava.py
    "llava": _LLAVA,
    # models/llava_next/modeling_llava_next.py (an image is cut into several, of its own shape)
    "llava_next": _LLAVA,
    # models/qwen2_5_vl/modeling_qwen2_5_vl.py (as many tokens as an image has patches; positions of three dimensions)
    "qwen2_5_vl": Multimodal(
        "model.language_model",
        vision="model.visual",
        projector=Architecture("model.visual.merger", (Sublayer("ffn", "", ("mlp.0", "mlp.2")),), residual=False),
    ),
    # models/qwen3_vl/modeling_qwen3_vl.py (features of inner blocks of the tower are added to the stream after the first blocks of the
    # decoder; the mergers that make them stay unchanged)
    "qwen3_vl": Multimodal(
        "model.language_model",
        vision="model.visual",
        projector=Architecture(
            "model.visual.merger", (Sublayer("ffn", "", ("linear_fc1", "linear_fc2")),), residual=False
        ),
    ),
    # models/gemma3/modeling_gemma3.py (the projector is one matrix, not a linear; attention within images is bidirectional)
    "gemma3": Multimodal("model.language_model", vision="model.vision_tower"),
    # models/mistral3/modeling_mistral3.py (patches are merged before the projector)
    "mistral3": Multimodal(
        "model.language_model",
        vision="model.vision_tower",
        projector=replace(_PROJECTOR, untouched=("patch_merger.merging_layer",)),
        layer="vision_feature_layer",
    ),
}
