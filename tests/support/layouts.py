"""Weight files in the layouts of the Hub: tensors under other names, with additional tensors, experts stacked or separate.

A layout maps the tensors that `save_pretrained` writes; each family has the layouts of its published checkpoints.
"""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
Layout = Callable[[Tensors], Tensors]
WEIGHTS = "model.safetensors"


def renamed(*rules: tuple[str, str]) -> Layout:
    """Rename every tensor by the first matching rule, a pattern at the beginning of the name and its replacement."""

    def layout(tensors: Tensors) -> Tensors:
        return {_by(rules, name): tensor for name, tensor in tensors.items()}

    return layout


def _by(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def beside(attention: str, **extra: Tensor) -> Layout:
    """Add the buffers that earlier versions of transformers saved with the attention of every block."""

    def layout(tensors: Tensors) -> Tensors:
        places = {found[0] for name in tensors if (found := re.match(rf".*\.\d+\.{attention}(?=\.)", name))}
        return tensors | {f"{place}.{name}": tensor.clone() for place in places for name, tensor in extra.items()}

    return layout


def headed(head: str, embedding: str) -> Layout:
    """Add the tied embedding a second time, as the head."""
    return lambda tensors: tensors | {head: tensors[embedding].clone()}


def stacked(tensors: Tensors) -> Tensors:
    """Stack the experts of every block in two tensors, as in transformers 5."""
    found: Tensors = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    parts = [("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")]
    for stack in {name.partition(".experts.")[0] for name in tensors if ".experts." in name}:
        gate, up, down = next(roles for roles in parts if f"{stack}.experts.0.{roles[0]}.weight" in tensors)
        count = len([name for name in tensors if re.match(rf"{stack}\.experts\.\d+\.{gate}\.", name)])
        each = [
            {role: tensors[f"{stack}.experts.{i}.{role}.weight"] for role in (gate, up, down)} for i in range(count)
        ]
        place = stack.replace("block_sparse_moe", "mlp")
        found[f"{place}.experts.gate_up_proj"] = torch.stack([torch.cat([one[gate], one[up]]) for one in each])
        found[f"{place}.experts.down_proj"] = torch.stack([one[down] for one in each])
    return found


FREQUENCIES = torch.linspace(1, 0.1, 4)
ROTARY = beside("self_attn", **{"rotary_emb.inv_freq": FREQUENCIES})
MASK = torch.ones(64, 64, dtype=torch.uint8).tril()[None, None]

LAYOUTS: dict[str, dict[str, Layout]] = {
    **{
        family: {"rotary frequencies in every block": ROTARY, "without the prefix": renamed((r"model\.", ""))}
        for family in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "olmo2", "granite", "phi", "phi3")
    },
    "starcoder2": {"without the prefix": renamed((r"model\.", ""))},
    "opt": {
        "without the prefix": renamed((r"model\.", "")),
        "with the tied head": headed("lm_head.weight", "model.decoder.embed_tokens.weight"),
    },
    "gpt2": {
        "without the prefix, with masks": lambda tensors: beside("attn", bias=MASK, masked_bias=torch.tensor(-1e4))(
            renamed((r"transformer\.", ""))(tensors)
        ),
        "with masks": beside("attn", bias=MASK, masked_bias=torch.tensor(-1e4)),
        "with the tied head": headed("lm_head.weight", "transformer.wte.weight"),
    },
    "gpt_neox": {
        "with masks and frequencies": beside(
            "attention", **{"bias": MASK, "masked_bias": torch.tensor(-1e9), "rotary_emb.inv_freq": FREQUENCIES}
        )
    },
    "falcon": {
        "with the tied head and frequencies": lambda tensors: headed(
            "lm_head.weight", "transformer.word_embeddings.weight"
        )(beside("self_attention", **{"rotary_emb.inv_freq": FREQUENCIES})(tensors))
    },
    "mixtral": {"stacked experts": stacked, "rotary frequencies in every block": ROTARY},
    **{family: {"stacked experts": stacked} for family in ("qwen2_moe", "qwen3_moe", "olmoe")},
    "llava": {
        "names of 2023": renamed((r"vision_tower\.", "vision_tower.vision_model.")),
        "names as in the model": renamed(
            (r"language_model\.model\.", "model.language_model."),
            (r"language_model\.lm_head\.", "lm_head."),
            (r"(vision_tower|multi_modal_projector)\.", r"model.\1."),
        ),
    },
    "qwen2_5_vl": {
        "names as in the model": renamed((r"model\.", "model.language_model."), (r"visual\.", "model.visual."))
    },
}
"""Layouts by family and name."""


def lay_out(folder: Path, layout: Layout) -> None:
    """Rewrite the one weight file of a folder in another layout."""
    save_file(layout(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})
