"""A task that a tiny model learns in a few steps: sequences that count upwards, in steps of three."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.checkpoints.format import describe
from mgaa.models.architectures import decoder_blocks
from mgaa.models.lowrank import low_rank_layers
from mgaa.recovery import Examples, Plan, from_windows


@pytest.fixture
def windows() -> Tensor:
    return (torch.arange(12)[None] * 3 + torch.arange(12)[:, None] * 7) % 60


@pytest.fixture
def examples(windows: Tensor) -> Examples:
    return from_windows(windows)


@pytest.fixture
def validation(windows: Tensor) -> Examples:
    return from_windows((windows[:4] + 1) % 60)


@pytest.fixture
def plan() -> Plan:
    """Six steps of four sequences, with a validation every second."""
    return Plan(steps=6, batch=4, micro_batch=2, rate=1e-2, rank=2, alpha=4, evaluate_every=2, precision="float32")


@pytest.fixture
def mixed(tiny: Callable[..., PreTrainedModel], compress: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    """Low-rank attention with biases that Llama does not have, FFNs pruned to different widths, and one dense linear."""
    model = compress(tiny(), keep=0.3)
    for index, block in enumerate(decoder_blocks(model)):
        width = 40 - 8 * index
        for name, shape in (("gate_proj", (width, 32)), ("up_proj", (width, 32)), ("down_proj", (32, width))):
            linear = nn.Linear(shape[1], shape[0], bias=False)
            nn.init.normal_(linear.weight, std=0.2)
            block.mlp.set_submodule(name, linear)
    attention = decoder_blocks(model)[0].self_attn
    dense = nn.Linear(32, 32, bias=False)
    nn.init.normal_(dense.weight, std=0.2)
    attention.set_submodule("o_proj", dense)
    describe(model)
    return model.eval().requires_grad_(False)


@pytest.fixture
def ranks() -> Callable[[PreTrainedModel], dict[str, int]]:
    return lambda model: {name: layer.rank for name, layer in low_rank_layers(model).items()}
