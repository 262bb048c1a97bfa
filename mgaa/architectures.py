"""Where the compressible linears of a decoder are, as data.

One frozen entry per `model_type` of transformers. An entry names the list of decoder blocks, the residual branches
(*sublayers*) of one block, and inside a sublayer the linears, grouped by the input that they share: `q,k,v` read one tensor,
so one second moment serves all three. `enters` and `leaves` are modules of the block whose *input* is the residual stream
before and after the sublayer; an empty `leaves` means the output of the block. Nothing else of the library knows a model by name.

To support another architecture, add an entry here (about ten lines, with the URL of its modelling file); the contract tests
find it by themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from mgaa.budget import Matrix
from mgaa.errors import InputError


@dataclass(frozen=True)
class Sublayer:
    """One residual branch of a decoder block."""

    name: str
    enters: str
    leaves: str
    inputs: tuple[tuple[str, ...], ...]

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of the linears inside the block, in the order of the entry."""
        return tuple(name for group in self.inputs for name in group)


@dataclass(frozen=True)
class Architecture:
    """A family of decoders: the path of its block list and the sublayers of one block."""

    blocks: str
    sublayers: tuple[Sublayer, ...]


# Pre-norm blocks with separate q, k, v, o and a gated FFN.
# https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/llama/modeling_llama.py
_GATED_PRE_NORM = Architecture(
    blocks="model.layers",
    sublayers=(
        Sublayer(
            name="attention",
            enters="input_layernorm",
            leaves="post_attention_layernorm",
            inputs=(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",)),
        ),
        Sublayer(
            name="ffn",
            enters="post_attention_layernorm",
            leaves="",
            inputs=(("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)),
        ),
    ),
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _GATED_PRE_NORM,
    # .../models/mistral/modeling_mistral.py (sliding-window attention, same modules)
    "mistral": _GATED_PRE_NORM,
    # .../models/qwen2/modeling_qwen2.py (biases on q, k, v)
    "qwen2": _GATED_PRE_NORM,
    # .../models/qwen3/modeling_qwen3.py (norms on the heads of q and k, inside the sublayer)
    "qwen3": _GATED_PRE_NORM,
}


def architecture_of(model_type: str) -> Architecture:
    """The entry of a `model_type`.

    Raises:
        InputError: there is none.
    """
    if model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise InputError(
            f"the architecture {model_type!r} has no entry; known are {known}. "
            "To add it, write its block list and sublayers into mgaa/architectures.py"
        )
    return ARCHITECTURES[model_type]


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of a transformers model, in order."""
    blocks = model.get_submodule(architecture_of(model.config.model_type).blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def matrices_of(model: PreTrainedModel) -> list[Matrix]:
    """Every compressible weight matrix of the model: block by block, in the order of the entry."""
    return list(_matrices(model))


def _matrices(model: PreTrainedModel) -> Iterator[Matrix]:
    entry = architecture_of(model.config.model_type)
    for index, block in enumerate(decoder_blocks(model)):
        for sublayer in entry.sublayers:
            for local in sublayer.linears:
                linear = block.get_submodule(local)
                name = f"{entry.blocks}.{index}.{local}"
                if not isinstance(linear, nn.Linear):
                    raise InputError(
                        f"{name} is a {type(linear).__name__}, expected nn.Linear: "
                        "start from the dense backbone, not from a compressed or quantised one"
                    )
                yield Matrix(
                    name=name,
                    local=local,
                    block=index,
                    sublayer=f"{index}.{sublayer.name}",
                    m=linear.out_features,
                    n=linear.in_features,
                    bias=linear.bias is not None,
                )
