"""A merged layer computes what the layer and its update computed together, in the smallest exact form."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mgaa
from mgaa.errors import NumericalError
from mgaa.models.lowrank import LowRankLinear
from mgaa.recovery import Plan
from mgaa.recovery.attach import target_names
from mgaa.recovery.merging import Update, merge_, merged

Forward = Callable[[PreTrainedModel], Tensor]


def update(m: int = 20, n: int = 12, rank: int = 2, size: float = 1.0) -> Update:
    generator = torch.Generator().manual_seed(1)
    A, B = torch.randn(rank, n, generator=generator), torch.randn(m, rank, generator=generator)
    return Update(A, size * B, 2.0)


def low_rank(rank: int = 3, dtype: torch.dtype = torch.float64, bias: bool = True) -> LowRankLinear:
    torch.manual_seed(0)
    return LowRankLinear(12, 20, rank, bias=bias, dtype=dtype)


def random_updates(model: PreTrainedModel, names: list[str], rank: int = 2) -> dict[str, Update]:
    layers = {name: model.get_submodule(name) for name in names}
    return {name: update(layer.out_features, layer.in_features, rank, 0.1) for name, layer in layers.items()}


def test_a_low_rank_layer_gets_the_rank_of_the_update_and_no_rounding() -> None:
    layer, given, x = low_rank(), update(), torch.randn(5, 12, dtype=torch.float64)
    found = merged(layer, given)
    assert isinstance(found, LowRankLinear)
    assert found.rank == 5
    expected = layer(x) + 2.0 * x @ given.A.double().T @ given.B.double().T
    torch.testing.assert_close(found(x), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.A.weight[:3], layer.A.weight)
    assert torch.equal(found.B.weight[:, :3], layer.B.weight)


@pytest.mark.parametrize(("rank", "kind"), [(5, LowRankLinear), (6, nn.Linear)])
def test_at_break_even_the_layer_becomes_dense(rank: int, kind: type) -> None:
    layer, given, x = low_rank(rank), update(), torch.randn(5, 12, dtype=torch.float64)
    found = merged(layer, given)  # (5 + 2) (20 + 12) = 224 < 240 <= (6 + 2) (20 + 12)
    assert type(found) is kind
    expected = layer(x) + 2.0 * x @ given.A.double().T @ given.B.double().T
    torch.testing.assert_close(found(x), expected, rtol=1e-12, atol=1e-12)


def test_factors_of_the_size_of_the_matrix_become_dense() -> None:
    layer = LowRankLinear(8, 8, 2, dtype=torch.float64)
    assert type(merged(layer, update(8, 8))) is nn.Linear  # (2 + 2) (8 + 8) = 8 * 8


@pytest.mark.parametrize(("rank", "expected"), [(6, 8), (11, 12)])
@pytest.mark.parametrize("wide", [False, True])
def test_where_no_dense_layer_can_be_stored_it_stays_low_rank(rank: int, expected: int, wide: bool) -> None:
    torch.manual_seed(0)
    m, n = (12, 20) if wide else (20, 12)
    layer, given = LowRankLinear(n, m, rank, dtype=torch.float64), update(m, n)
    found, x = merged(layer, given, dense=False), torch.randn(5, n, dtype=torch.float64)
    assert isinstance(found, LowRankLinear)
    assert found.rank == expected
    torch.testing.assert_close(found(x), merged(layer, given)(x), rtol=1e-12, atol=1e-12)


def test_a_dense_layer_is_rounded_once() -> None:
    layer, given = nn.Linear(12, 20, dtype=torch.bfloat16), update()
    found = merged(layer, given)
    assert torch.equal(found.weight, (layer.weight.double() + given.product()).bfloat16())
    assert torch.equal(found.bias, layer.bias)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
def test_balancing_is_exact_and_keeps_float16_away_from_its_ends(size: float) -> None:
    A, B = update(size=size).balanced()
    torch.testing.assert_close(B @ A, update(size=size).product(), rtol=1e-14, atol=0)
    quotient = B.norm(dim=0) / A.norm(dim=1)
    assert 0.5 <= float(quotient.min()) <= float(quotient.max()) <= 2


def test_a_direction_that_learnt_nothing_stays_zero() -> None:
    given = update()
    given.B[:, 0] = 0
    A, B = given.balanced()
    assert torch.equal(A[0], given.A[0].double())
    assert not B[:, 0].any()


def test_a_tiny_update_survives_float16() -> None:
    layer, given = low_rank(dtype=torch.float16), update(size=1e-8)
    found = merged(layer, given)
    assert isinstance(found, LowRankLinear)
    product = found.B.weight[:, 3:].double() @ found.A.weight[3:].double()
    torch.testing.assert_close(product, given.product(), rtol=1e-2, atol=1e-10)


def test_a_merged_model_is_saved_and_loaded(
    mixed: PreTrainedModel, words: PreTrainedTokenizerFast, logits: Forward, tmp_path: Path
) -> None:
    merge_(mixed, random_updates(mixed, target_names(mixed, Plan()), rank=8))
    assert isinstance(mixed.get_submodule("model.layers.0.self_attn.q_proj"), LowRankLinear)
    before = logits(mixed)
    mgaa.save(mixed, words, tmp_path / "saved")
    loaded, _ = mgaa.load(tmp_path / "saved", device="cpu")
    assert torch.equal(logits(loaded), before)


def test_layers_become_dense_where_the_class_of_the_model_has_room_for_their_bias(
    tiny: Callable[..., PreTrainedModel],
    compress: Callable[..., PreTrainedModel],
    words: PreTrainedTokenizerFast,
    logits: Forward,
    tmp_path: Path,
) -> None:
    model = compress(tiny("qwen2"), keep=0.4)  # q, k and v have a bias of their own, o gets one
    merge_(model, random_updates(model, target_names(model, Plan()), rank=8))
    attention = model.model.layers[0].self_attn
    assert type(attention.q_proj) is nn.Linear
    assert isinstance(attention.o_proj, LowRankLinear)
    before = logits(model)
    mgaa.save(model, words, tmp_path / "saved")
    assert torch.equal(logits(mgaa.load(tmp_path / "saved", device="cpu")[0]), before)


def test_an_overflow_is_an_error_and_leaves_the_model_alone(mixed: PreTrainedModel) -> None:
    model = mixed.half()
    state = copy.deepcopy(model.state_dict())
    updates = random_updates(model, target_names(model, Plan()))
    last = list(updates)[-1]
    updates[last] = Update(updates[last].A * 1e10, updates[last].B * 1e10, 1.0)
    with pytest.raises(NumericalError, match=rf"{last} has \d+ non-finite entries .*float16.* lower recovery.rate"):
        merge_(model, updates)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
