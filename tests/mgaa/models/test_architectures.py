"""What every entry of `ARCHITECTURES` must say truly about its models; a new entry is tested without a new line."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomConfig, PreTrainedModel

from mgaa.checkpoints.save import apply_factors
from mgaa.decomposition.linalg import decompose
from mgaa.errors import InputError
from mgaa.factors import factorize
from mgaa.methods import available_methods, load_method
from mgaa.models.architectures import architecture_of, decoder_blocks, matrices_of
from mgaa.models.entries import ARCHITECTURES
from mgaa.models.fused import unfuse_
from mgaa.statistics.calibration import stream_statistics
from mgaa.statistics.hooks import hidden_states_of
from tests.mgaa.conftest import FAMILIES

Tiny = Callable[..., PreTrainedModel]
Compress = Callable[..., PreTrainedModel]

PARALLEL = {"phi", "gpt_neox", "falcon", "falcon, grouped heads", "falcon, one norm"}
"""Families whose attention and FFN both read the input of the block."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(family: str, tiny: Tiny) -> PreTrainedModel:
    return unfuse_(tiny(family).double())


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(0))


def test_every_linear_inside_the_blocks_is_named_exactly_once_or_left_alone(model: PreTrainedModel) -> None:
    entry = architecture_of(model.config)
    inside = [
        f"{entry.blocks}.{index}.{name}"
        for index, block in enumerate(decoder_blocks(model))
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and name not in entry.untouched
    ]
    assert sorted(matrix.name for matrix in matrices_of(model)) == sorted(inside)


def test_no_weight_of_a_block_is_forgotten(family: str, model: PreTrainedModel, tiny: Tiny) -> None:
    """What is neither a named matrix nor a bias is a norm, a router or the gate of a shared expert; and nothing was lost."""
    entry = architecture_of(model.config)
    named = {f"{matrix.name}.weight" for matrix in matrices_of(model)}
    left = {
        name.partition(f"{entry.blocks}.")[2].partition(".")[2].removesuffix(".weight")
        for name, parameter in model.named_parameters()
        if name.startswith(entry.blocks) and parameter.ndim > 1 and name not in named
    }
    assert left <= set(entry.untouched)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in tiny(family).parameters())


def test_matrices_carry_the_shape_and_the_place_of_their_linear(model: PreTrainedModel) -> None:
    sublayers = {s.name: s for s in architecture_of(model.config).sublayers}
    for matrix in matrices_of(model):
        linear = model.get_submodule(matrix.name)
        assert (matrix.m, matrix.n, matrix.bias) == (*linear.weight.shape, linear.bias is not None)
        block = decoder_blocks(model)[matrix.block]
        assert block.get_submodule(matrix.local) is linear
        index, _, name = matrix.sublayer.partition(".")
        assert int(index) == matrix.block
        assert matrix.local in {local for group in sublayers[name].groups(block) for local in group.linears}


def test_matrices_come_in_model_order_with_the_sublayers_together(model: PreTrainedModel) -> None:
    sublayers = [matrix.sublayer for matrix in matrices_of(model)]
    assert list(dict.fromkeys(sublayers)) == [
        f"{block}.{s.name}"
        for block in range(len(decoder_blocks(model)))
        for s in architecture_of(model.config).sublayers
    ]
    assert sublayers == sorted(sublayers, key=list(dict.fromkeys(sublayers)).index)


def test_linears_of_one_group_read_one_tensor(model: PreTrainedModel, tokens: Tensor) -> None:
    seen: dict[str, Tensor] = {}
    for matrix in matrices_of(model):
        model.get_submodule(matrix.name).register_forward_pre_hook(
            lambda _, arguments, name=matrix.name: seen.update({name: arguments[0]})
        )
    with torch.no_grad():
        model(tokens)
    entry = architecture_of(model.config)
    for index, block in enumerate(decoder_blocks(model)):
        for sublayer in entry.sublayers:
            groups = [[seen[f"{entry.blocks}.{index}.{x}"] for x in g.linears] for g in sublayer.groups(block)]
            assert all(torch.equal(group[0], tensor) for group in groups for tensor in group)


@pytest.mark.parametrize("factorizer", available_methods("factors"))
def test_logits_do_not_change_by_a_full_rank_swap(model: PreTrainedModel, tokens: Tensor, factorizer: str) -> None:
    with torch.no_grad():
        before = model(tokens).logits
    metric, factors = load_method("factors", factorizer, {}), {}
    for index, statistics in enumerate(stream_statistics(model, tokens)):
        for matrix in (matrix for matrix in matrices_of(model) if matrix.block == index):
            linear = model.get_submodule(matrix.name)
            weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
            given = replace(statistics.of(matrix.local), gradient=torch.eye(matrix.m, dtype=torch.float64))
            spectrum = decompose(weight, metric(given))
            factors[matrix.name] = factorize(weight, bias, spectrum, min(matrix.m, matrix.n))
    apply_factors(model, factors)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-9, atol=1e-9)


def test_cosines_are_those_of_the_residual_stream(family: str, model: PreTrainedModel, tokens: Tensor) -> None:
    """A branch is what the block adds while the other branch adds nothing, because all its linears are zero."""
    calls: dict[int, tuple[Any, Any, Tensor]] = {}
    for index, block in enumerate(decoder_blocks(model)):
        block.register_forward_hook(
            lambda _, args, kwargs, output, index=index: calls.update(
                {index: (args, kwargs, hidden_states_of(output))}
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        model(tokens, use_cache=False)
    recorded = dict(calls)
    found = list(stream_statistics(model, tokens, batch_size=4))
    for index, (args, kwargs, output) in recorded.items():
        only_attention = without(model, index, "ffn", args, kwargs)
        only_ffn = without(model, index, "attention", args, kwargs)
        middle = args[0] if family in PARALLEL else only_attention
        after = only_ffn if family in PARALLEL else output
        for name, one, two in (("attention", args[0], only_attention), ("ffn", middle, after)):
            stream = torch.cosine_similarity(one, two, dim=-1).mean()
            branch = torch.cosine_similarity(one, two - one, dim=-1).mean()
            assert found[index].cosines[name] == pytest.approx(float(stream), abs=1e-6)
            assert found[index].branch_cosines[name] == pytest.approx(float(branch), abs=1e-6)


def without(model: PreTrainedModel, index: int, sublayer: str, args: Any, kwargs: Any) -> Tensor:
    """The output of a block whose linears of one sublayer are zero; the model is left as it was."""
    block = decoder_blocks(model)[index]
    linears = [block.get_submodule(m.local) for m in matrices_of(model) if m.sublayer == f"{index}.{sublayer}"]
    kept = [(parameter, parameter.data) for linear in linears for parameter in linear.parameters()]
    for parameter, data in kept:
        parameter.data = torch.zeros_like(data)
    with torch.no_grad():
        output = hidden_states_of(block(*args, **kwargs)).clone()
    for parameter, data in kept:
        parameter.data = data
    return output


def test_a_compressed_model_is_refused(model: PreTrainedModel, compress: Compress) -> None:
    with pytest.raises(InputError, match=r"\.0\..* is a LowRankLinear, expected nn\.Linear: start from the dense"):
        matrices_of(compress(model))


@pytest.mark.parametrize("kind", ["phi3", "gpt2", "gpt_neox", "falcon", "mixtral"])
def test_a_model_that_was_not_taken_apart_is_refused(kind: str, tiny: Tiny) -> None:
    with pytest.raises(
        InputError, match=r"split the model first \(mgaa\.models\.fused\.unfuse_\)|is a Conv1D, expected nn\.Linear"
    ):
        matrices_of(tiny(kind))


def test_a_linear_that_the_entry_does_not_name_is_refused(tiny: Tiny) -> None:
    model = tiny()
    decoder_blocks(model)[1].mlp.adapter = nn.Linear(4, 4)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.adapter is a linear that the entry of 'llama' does not"):
        matrices_of(model)


@pytest.mark.parametrize("kind", ["phi3", "gpt2", "mixtral"])
def test_a_model_that_was_not_taken_apart_is_not_measured(kind: str, tiny: Tiny, tokens: Tensor) -> None:
    with pytest.raises(InputError, match=r"split the model first|is a Conv1D"):
        list(stream_statistics(tiny(kind), tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_block_that_does_more_than_its_entry_says_is_refused(tiny: Tiny, tokens: Tensor, dtype: torch.dtype) -> None:
    model = tiny("opt", do_layer_norm_before=False).to(dtype)  # as the checkpoint of 350 million parameters
    for block in decoder_blocks(model):
        block.final_layer_norm.weight.data.fill_(2000.0)  # a norm beyond the range of float16
    with pytest.raises(InputError, match=r"decoder\.layers\.0 differs by .* expected at most 0\.02: this opt computes"):
        list(stream_statistics(model, tokens))


def test_an_unknown_architecture_is_refused_with_the_way_to_add_it() -> None:
    with pytest.raises(InputError, match=r"'bloom' has no entry; known are falcon, .*mgaa/models/entries\.py"):
        architecture_of(BloomConfig())


def test_entries_are_short_and_carry_their_source() -> None:
    import inspect

    from mgaa.models import entries as tables

    text = inspect.getsource(tables).partition("ARCHITECTURES: dict")[2].partition("\n}\n")[0]
    entries = text.split('\n    "')[1:]
    assert len(entries) == len(ARCHITECTURES)
    assert max(len(entry.splitlines()) for entry in entries) <= 15  # the comment of the next entry included
    for family in ARCHITECTURES:
        assert f"/{family.removesuffix('_text')}/modeling_{family.removesuffix('_text')}.py" in inspect.getsource(
            tables
        )
