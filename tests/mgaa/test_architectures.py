"""What every entry of `ARCHITECTURES` must say truly about its models; a new entry is tested without a new line."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.architectures import ARCHITECTURES, architecture_of, decoder_blocks, matrices_of
from mgaa.checkpoint import apply_factors
from mgaa.errors import InputError
from mgaa.factors import factorize
from mgaa.linalg import decompose
from mgaa.methods import available, method
from mgaa.streaming import stream_statistics

Tiny = Callable[..., PreTrainedModel]
Compress = Callable[..., PreTrainedModel]


@pytest.fixture(params=sorted(ARCHITECTURES))
def model(request: pytest.FixtureRequest, tiny: Tiny) -> PreTrainedModel:
    return tiny(request.param).double()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(0))


def test_every_linear_inside_the_blocks_is_named_exactly_once(model: PreTrainedModel) -> None:
    blocks = {name for name, module in model.named_modules() if module is decoder_blocks(model)}
    inside = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(tuple(f"{path}." for path in blocks))
    ]
    assert sorted(matrix.name for matrix in matrices_of(model)) == sorted(inside)


def test_matrices_carry_the_shape_and_the_place_of_their_linear(model: PreTrainedModel) -> None:
    sublayers = {s.name: s for s in architecture_of(model.config.model_type).sublayers}
    for matrix in matrices_of(model):
        linear = model.get_submodule(matrix.name)
        assert (matrix.m, matrix.n, matrix.bias) == (*linear.weight.shape, linear.bias is not None)
        assert decoder_blocks(model)[matrix.block].get_submodule(matrix.local) is linear
        block, _, name = matrix.sublayer.partition(".")
        assert int(block) == matrix.block
        assert matrix.local in sublayers[name].linears


def test_matrices_come_in_model_order_with_the_sublayers_together(model: PreTrainedModel) -> None:
    sublayers = [matrix.sublayer for matrix in matrices_of(model)]
    assert list(dict.fromkeys(sublayers)) == [
        f"{block}.{s.name}"
        for block in range(len(decoder_blocks(model)))
        for s in architecture_of(model.config.model_type).sublayers
    ]
    assert sublayers == sorted(sublayers, key=list(dict.fromkeys(sublayers)).index)


def test_linears_of_one_group_read_one_tensor_and_groups_differ(model: PreTrainedModel, tokens: Tensor) -> None:
    seen: dict[str, Tensor] = {}
    for matrix in matrices_of(model):
        model.get_submodule(matrix.name).register_forward_pre_hook(
            lambda _, arguments, name=matrix.name: seen.update({name: arguments[0]})
        )
    with torch.no_grad():
        model(tokens)
    entry = architecture_of(model.config.model_type)
    for block in range(len(decoder_blocks(model))):
        groups = [[seen[f"{entry.blocks}.{block}.{x}"] for x in group] for s in entry.sublayers for group in s.inputs]
        assert all(torch.equal(group[0], tensor) for group in groups for tensor in group)
        assert len({group[0].data_ptr() for group in groups}) == len(groups)


@pytest.mark.parametrize("factorizer", available("factors"))
def test_logits_do_not_change_by_a_full_rank_swap(model: PreTrainedModel, tokens: Tensor, factorizer: str) -> None:
    with torch.no_grad():
        before = model(tokens).logits
    metric, factors = method("factors", factorizer, {}), {}
    for index, statistics in enumerate(stream_statistics(model, tokens)):
        for matrix in (matrix for matrix in matrices_of(model) if matrix.block == index):
            linear = model.get_submodule(matrix.name)
            weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
            spectrum = decompose(weight, metric(statistics.of(matrix.local)))
            factors[matrix.name] = factorize(weight, bias, spectrum, min(matrix.m, matrix.n))
    apply_factors(model, factors)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-9, atol=1e-9)


def test_cosines_are_those_of_the_residual_stream(model: PreTrainedModel, tokens: Tensor) -> None:
    """The stream is rebuilt from what transformers returns: hidden states between blocks, and the output of the attention."""
    branches: list[Tensor] = []
    for block in decoder_blocks(model):
        block.self_attn.register_forward_hook(lambda _, __, output: branches.append(output[0]))
    with torch.no_grad():
        states = list(model(tokens, output_hidden_states=True).hidden_states[:-1])  # the last is normed
    last: list[Tensor] = []
    decoder_blocks(model)[-1].register_forward_hook(lambda _, __, output: last.append(output))
    attention = list(branches)
    with torch.no_grad():
        model(tokens)
    states += [last[0][0] if isinstance(last[0], tuple) else last[0]]
    for index, statistics in enumerate(stream_statistics(model, tokens, batch_size=4)):
        before, after = states[index], states[index + 1]
        middle = before + attention[index]
        for name, one, two in (("attention", before, middle), ("ffn", middle, after)):
            stream = torch.cosine_similarity(one, two, dim=-1).mean()
            branch = torch.cosine_similarity(one, two - one, dim=-1).mean()
            assert statistics.cosines[name] == pytest.approx(float(stream), abs=1e-6)
            assert statistics.branch_cosines[name] == pytest.approx(float(branch), abs=1e-6)


def test_a_compressed_model_is_refused(model: PreTrainedModel, compress: Compress) -> None:
    with pytest.raises(
        InputError, match=r"layers\.0\..* is a LowRankLinear, expected nn\.Linear: start from the dense"
    ):
        matrices_of(compress(model))


def test_an_unknown_architecture_is_refused_with_the_way_to_add_it() -> None:
    with pytest.raises(InputError, match=r"'gpt2' has no entry; known are llama, mistral, .*mgaa/architectures\.py"):
        architecture_of("gpt2")
