"""Truths of products in float32: a linear computes what it did, and the statistics see what it had before rounding."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.blocks import products
from mgaa.blocks.products import Float32Product, float32_products, product_of
from mgaa.statistics.calibration import stream_statistics

Tiny = Callable[..., PreTrainedModel]


@pytest.fixture(params=[False, True], ids=["no tiles", "tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A processor with or without tiles for products in 16 bits."""
    monkeypatch.setattr(products, "_has_tiles", lambda dtype: request.param)
    return bool(request.param)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_linear_computes_the_rounded_product_of_float64(tiles: bool, dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(48, 20, bias=bias).to(dtype).requires_grad_(False), torch.randn(3, 30, 48).to(dtype)
    exact = nn.functional.linear(x.double(), linear.weight.double(), linear.bias.double() if bias else None)
    with float32_products(nn.Sequential(linear)):
        assert (product_of(linear) is None) == tiles
        found = linear(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert "forward" not in vars(linear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_linears_keep_their_forward(dtype: torch.dtype) -> None:
    linear = nn.Linear(4, 3, dtype=dtype)
    with float32_products(linear):
        assert "forward" not in vars(linear)


def test_a_product_is_kept_once_and_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = nn.Linear(8, 4, dtype=torch.bfloat16), torch.ones(2, 8, dtype=torch.bfloat16)
    forward = Float32Product(linear)
    forward(x)
    assert forward.take() is None
    forward.keep = True
    rounded, kept = forward(x), forward.take()
    assert kept is not None
    assert kept.dtype == torch.float32
    assert torch.equal(kept.bfloat16(), rounded)
    assert forward.take() is None


def test_the_statistics_of_outputs_come_from_unrounded_products(tiny: Tiny, tiles: bool) -> None:
    tokens: Tensor = torch.randint(0, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    model, seen = tiny(num_hidden_layers=1).bfloat16(), list[Tensor]()
    down = model.get_submodule("model.layers.0.mlp.down_proj")
    with down.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].flatten(0, 1).double())):
        found = next(stream_statistics(model, tokens)).inputs["mlp.down_proj"]
    expected = torch.cov(down.weight.detach().double() @ torch.cat(seen).T, correction=0)
    assert found.side == "output"
    assert float(torch.linalg.norm(found.covariance - expected) / torch.linalg.norm(expected)) < 1e-6
