"""Where the compressible linears of a decoder are, as data.

One frozen entry per `model_type` of transformers. An entry names the list of decoder blocks, the residual branches (*sublayers*) of one
block, and inside a sublayer the linears, grouped by the input that they share: `q,k,v` read one tensor, so one second moment serves
all three. It also says what is unusual: layers that hold several matrices in one tensor (`mgaa.fused` takes them apart), stacked experts,
branches that are scaled or computed in parallel. Nothing else of the library knows a model by name.

A model that sees (`MULTIMODAL`) names the place of its decoder, which has the entry of its own family, of its vision tower (`VISION`)
and of the projector between them. The decoder is what is compressed, and the others where asked for: each is a `Stack` of blocks.

To support another architecture, add an entry here (about ten lines, with the path of its modelling file below
https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers); the contract tests find it by themselves.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mgaa.anatomy import Architecture, Fused, Multimodal, Sublayer, has
from mgaa.budget import Matrix
from mgaa.errors import InputError, UsageError

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

# Experts, shared experts and, in some blocks, a dense FFN; the router and the gate of the shared expert (one row) are left alone.
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
    # models/gemma2/modeling_gemma2.py (soft-capped logits, inside the attention and behind the head)
    "gemma2": _GATED_POST_NORM,
    # models/gemma3/modeling_gemma3.py (the text model)
    "gemma3_text": _GATED_POST_NORM,
    # models/smollm3/modeling_smollm3.py (every fourth block without rotary positions)
    "smollm3": _GATED_PRE_NORM,
    # models/olmo2/modeling_olmo2.py (norms behind the branches only)
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
    # models/qwen3_vl/modeling_qwen3_vl.py (that of qwen3_vl)
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
    # models/qwen3_vl/modeling_qwen3_vl.py (features of inner blocks of the tower are added to the stream behind the first blocks of the
    # decoder; the mergers that make them are left alone)
    "qwen3_vl": Multimodal(
        "model.language_model",
        vision="model.visual",
        projector=Architecture(
            "model.visual.merger", (Sublayer("ffn", "", ("linear_fc1", "linear_fc2")),), residual=False
        ),
    ),
    # models/gemma3/modeling_gemma3.py (the projector is one matrix, no linear; images are read in both directions)
    "gemma3": Multimodal("model.language_model", vision="model.vision_tower"),
    # models/mistral3/modeling_mistral3.py (patches are merged in front of the projector)
    "mistral3": Multimodal(
        "model.language_model",
        vision="model.vision_tower",
        projector=replace(_PROJECTOR, untouched=("patch_merger.merging_layer",)),
        layer="vision_feature_layer",
    ),
}

PARTS = ("decoder", "vision", "projector")
"""What of a model can be compressed."""
DECODER = PARTS[:1]


@dataclass(frozen=True)
class Stack:
    """The blocks of one part of a model.

    Attributes:
        part: one of `PARTS`.
        entry: with paths from the model.
        config: that of the part.
        first: the number of its first block among the blocks of all parts that are compressed.
        blocks: those that have an effect.
    """

    part: str
    entry: Architecture
    config: PreTrainedConfig
    first: int
    blocks: tuple[nn.Module, ...]

    def path(self, index: int) -> str:
        """Where a block is in the model, by its place in the stack."""
        return f"{self.entry.blocks}.{index}" if self.entry.residual else self.entry.blocks


def architecture_of(config: PreTrainedConfig) -> Architecture:
    """The entry of a model with this config; of one that sees, that of its decoder.

    Raises:
        InputError: there is none.
    """
    seeing = MULTIMODAL.get(config.model_type)
    family: str = config.model_type if seeing is None else config.get_text_config().model_type
    if family not in ARCHITECTURES:
        known = ", ".join(sorted({*ARCHITECTURES, *MULTIMODAL}))
        raise InputError(
            f"the architecture {family!r} has no entry; known are {known}. "
            "To add it, write its block list and sublayers into mgaa/architectures.py"
        )
    return ARCHITECTURES[family] if seeing is None else seeing.around(ARCHITECTURES[family])


def has_entry(config: PreTrainedConfig) -> bool:
    """Whether a model with this config has an entry."""
    family = config.get_text_config().model_type if is_multimodal(config) else config.model_type
    return family in ARCHITECTURES


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Whether a model with this config sees, by an entry in `MULTIMODAL`."""
    return config.model_type in MULTIMODAL


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of a transformers model, with or without a head, in order."""
    blocks = model.get_submodule(path_of_blocks(model))
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def path_of_blocks(model: PreTrainedModel) -> str:
    """Where the decoder blocks are in a transformers model; without a head the path is shorter than that of the entry."""
    path = architecture_of(model.config).blocks
    return path if has(model, path) else path.removeprefix(f"{model.base_model_prefix}.")


def stacks_of(model: PreTrainedModel, parts: Sequence[str] = DECODER) -> list[Stack]:
    """The blocks of these parts of a model, the decoder's first.

    Raises:
        UsageError: a model that does not see has no such part.
        InputError: the decoder or the vision tower has no entry.
    """
    stacks: list[Stack] = []
    for part in PARTS:
        if part in parts:
            entry, config, blocks = _part(model, part)
            stacks.append(Stack(part, entry, config, sum(len(stack.blocks) for stack in stacks), tuple(blocks)))
    return stacks


def stack_at(model: PreTrainedModel, block: int, parts: Sequence[str] = DECODER) -> Stack:
    """The stack with the block of that number among those of all parts."""
    return next(stack for stack in reversed(stacks_of(model, parts)) if stack.first <= block)


def _part(model: PreTrainedModel, part: str) -> tuple[Architecture, PreTrainedConfig, Sequence[nn.Module]]:
    config = model.config
    if part == "decoder":
        return architecture_of(config), config, list(decoder_blocks(model))
    if not is_multimodal(config):
        raise UsageError(
            f"a {config.model_type} has no {part}: it does not see; compress its decoder alone (backbone.parts)"
        )
    seeing = MULTIMODAL[config.model_type]
    if part == "projector":
        if seeing.projector is None:
            raise UsageError(
                f"the projector of a {config.model_type} has no linears to compress: leave `projector` out of backbone.parts"
            )
        return seeing.projector, config, [model.get_submodule(seeing.projector.blocks)]
    tower: str = config.vision_config.model_type
    if tower not in VISION:
        raise InputError(
            f"the vision tower {tower!r} has no entry; known are {', '.join(VISION)}. Leave `vision` out of backbone.parts, or write its "
            "blocks into mgaa/architectures.py"
        )
    entry = replace(VISION[tower], blocks=f"{seeing.vision}.{VISION[tower].blocks}")
    blocks = list(model.get_submodule(entry.blocks).children())
    return entry, config.vision_config, blocks[: seeing.used(config, len(blocks))]


def parts_with(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """The parts of a model in which modules of these names are."""
    seeing = MULTIMODAL.get(model.config.model_type)
    if seeing is None:
        return [*DECODER]
    places = {"decoder": seeing.decoder, "vision": seeing.vision}
    places |= {} if seeing.projector is None else {"projector": seeing.projector.blocks}
    given = [*names]
    return [
        part for part, place in places.items() if part in DECODER or any(name.startswith(f"{place}.") for name in given)
    ]


def matrices_of(model: PreTrainedModel, parts: Sequence[str] = DECODER) -> list[Matrix]:
    """Every compressible weight matrix of a model that was taken apart (`mgaa.fused.unfuse_`): block by block, in the order of the entry.

    Args:
        parts: what of the model is compressed, some of `PARTS`.

    Raises:
        UsageError: the model has no such part.
        InputError: the architecture has no entry, or a block has a linear that the entry does not name.
    """
    return [
        matrix
        for stack in stacks_of(model, parts)
        for index, block in enumerate(stack.blocks)
        for matrix in _matrices(stack, index, block, model.config.model_type)
    ]


def _matrices(stack: Stack, index: int, block: nn.Module, model_type: str) -> Iterator[Matrix]:
    entry, path, number = stack.entry, stack.path(index), stack.first + index
    if (
        entry.experts
        and has(block, entry.experts)
        and not isinstance(block.get_submodule(entry.experts), nn.ModuleList)
    ):
        raise InputError(f"{path}.{entry.experts} is stacked: take the model apart first (mgaa.fused.unfuse_)")
    named = set(entry.untouched)
    for sublayer in entry.sublayers:
        groups = sublayer.groups(block)
        for local, role in ((x, role) for group in groups for x, role in zip(group.linears, group.roles, strict=True)):
            named.add(local)
            linear = block.get_submodule(local)
            if not isinstance(linear, nn.Linear):
                raise InputError(
                    f"{path}.{local} is a {type(linear).__name__}, expected nn.Linear: "
                    "start from the dense backbone, not from a compressed or quantised one"
                )
            yield Matrix(
                name=f"{path}.{local}",
                local=local,
                block=number,
                sublayer=f"{number}.{sublayer.name}",
                m=linear.out_features,
                n=linear.in_features,
                bias=linear.bias is not None,
                role=role,
            )
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear) and name not in named:
            raise InputError(
                f"{path}.{name} is a linear that the entry of {model_type!r} does not name: take the model apart first "
                "(mgaa.fused.unfuse_), or add the linear to the entry in mgaa/architectures.py"
            )
