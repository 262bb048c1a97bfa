"""What a low-rank linear must be: the product of its factors, an ordinary citizen of torch, and impossible to mistake."""

import copy

import jaxtyping
import pytest
import torch
from torch import nn

from mgaa.errors import UsageError
from mgaa.models.lowrank import Factors, LowRankLinear


def layer(dtype: torch.dtype = torch.float64, bias: bool = True) -> LowRankLinear:
    torch.manual_seed(0)
    return LowRankLinear(12, 20, 5, bias=bias, dtype=dtype)


def test_a_layer_computes_b_of_a_of_x_plus_bias() -> None:
    low, x = layer(), torch.randn(3, 7, 12, dtype=torch.float64)
    expected = x @ (low.B.weight @ low.A.weight).T + low.B.bias
    torch.testing.assert_close(low(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_the_dense_layer_computes_the_same(bias: bool) -> None:
    low, x = layer(bias=bias), torch.randn(4, 12, dtype=torch.float64)
    torch.testing.assert_close(low.dense()(x), low(x), rtol=1e-12, atol=1e-12)


def test_the_dense_weight_is_rounded_once() -> None:
    low = layer(torch.bfloat16)
    exact = low.B.weight.double() @ low.A.weight.double()
    assert torch.equal(low.dense().weight, exact.bfloat16())


def test_a_layer_computes_with_the_very_factors_given() -> None:
    factors = Factors(torch.randn(3, 8), torch.randn(6, 3), torch.randn(6))
    low = LowRankLinear.from_factors(factors)
    assert low.A.weight.data_ptr() == factors.A.data_ptr()
    assert low.B.weight.data_ptr() == factors.B.data_ptr()
    assert (low.in_features, low.out_features, low.rank) == (8, 6, 3)


def test_the_state_dict_moves_to_another_dtype_as_a_whole() -> None:
    state = layer(torch.float32).to(torch.bfloat16).state_dict()
    assert set(state) == {"A.weight", "B.weight", "B.bias", "weight"}
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


def test_a_deep_copy_shares_nothing() -> None:
    low, x = layer(), torch.randn(2, 12, dtype=torch.float64)
    before, twin = low(x), copy.deepcopy(low)
    nn.init.zeros_(twin.A.weight)
    assert torch.equal(low(x), before)
    assert not torch.equal(twin(x), before)


def test_a_layer_compiles_into_one_graph() -> None:
    low, x = layer(), torch.randn(2, 12, dtype=torch.float64)
    jaxtyping.config.update("jaxtyping_disable", True)  # the checker of shapes, on in tests only, does not compile
    try:
        compiled = torch.compile(low, backend="eager", fullgraph=True)(x)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert torch.equal(compiled, low(x))


def test_the_factors_are_plain_linears_that_adapters_find_by_name() -> None:
    found = {name: type(module) for name, module in layer().named_modules() if name}
    assert found == {"A": nn.Linear, "B": nn.Linear}


def test_the_mark_is_no_parameter() -> None:
    low = layer(bias=False)
    assert sum(parameter.numel() for parameter in low.parameters()) == 5 * (12 + 20)


@pytest.mark.parametrize("strict", [True, False])
def test_the_tensors_of_a_layer_never_load_into_a_dense_one(strict: bool) -> None:
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        nn.Linear(12, 20).load_state_dict(layer().state_dict(), strict=strict)


def test_the_mark_neither_broadcasts_to_a_matrix_nor_multiplies() -> None:
    mark = layer().weight
    with pytest.raises(RuntimeError):
        torch.empty(20, 12, dtype=torch.float64).copy_(mark)
    with pytest.raises(RuntimeError):
        nn.functional.linear(torch.randn(2, 12, dtype=torch.float64), mark)


@pytest.mark.parametrize("rank", [0, -1, 13])
def test_a_rank_beyond_the_matrix_is_refused(rank: int) -> None:
    with pytest.raises(UsageError, match=rf"rank {rank} of a 20 x 12 matrix: expected 1 to 12"):
        LowRankLinear(12, 20, rank)
