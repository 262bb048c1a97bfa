"""Several compressions of one model share what comes before the ranks, and are the compressions that stand alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from mgaa.errors import NumericalError, UsageError

Tiny = Callable[..., PreTrainedModel]
TARGETS = (0.5, 0.1, 0.3)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # gpt2 holds q, k and v in one tensor
@pytest.mark.parametrize(
    "chosen", [{}, {"factors": "whitened", "ratios": "uniform", "ranks": "uniform"}, {"channels": "weighted"}], ids=str
)
def test_each_is_the_compression_that_stands_alone(
    tiny: Tiny, tokens: Tensor, family: str, chosen: dict[str, Any]
) -> None:
    shared = mgaa.sweep(tiny(family), tokens, TARGETS, **chosen)
    for compression, (model, report) in zip(TARGETS, shared, strict=True):
        alone = tiny(family)
        assert report == mgaa.compress_(alone, tokens, compression=compression, **chosen)
        there = alone.state_dict()
        assert model.state_dict().keys() == there.keys()
        assert all(torch.equal(tensor, there[name]) for name, tensor in model.state_dict().items())
        assert model.config.quantization_config == alone.config.quantization_config


def test_the_model_stays_dense_and_shares_all_other_tensors(tiny: Tiny, tokens: Tensor) -> None:
    model, dense = tiny(), tiny().state_dict()
    (compressed, _), _ = mgaa.sweep(model, tokens, (0.2, 0.4))
    assert all(torch.equal(tensor, dense[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model.config, "quantization_config")
    assert compressed.get_input_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("run", ["alone", "sweep"])
def test_three_compressions_solve_the_eigenproblems_of_one(
    tiny: Tiny, tokens: Tensor, monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    solved, eigh = [], torch.linalg.eigh

    def counted(*given: Any, **named: Any) -> Any:
        solved.append(given[0].shape)
        return eigh(*given, **named)

    model = tiny()
    linears = len(mgaa.compress_(tiny(), tokens).matrices)
    monkeypatch.setattr(torch.linalg, "eigh", counted)
    if run == "alone":
        mgaa.compress_(model, tokens)
    else:
        assert len(list(mgaa.sweep(model, tokens, TARGETS))) == 3
    assert len(solved) == linears


def test_no_compression_measures_nothing(tiny: Tiny, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    monkeypatch.setattr(type(model), "forward", None)
    assert list(mgaa.sweep(model, tokens, ())) == []


def test_one_compression_out_of_reach_is_refused_in_the_call(tiny: Tiny, tokens: Tensor) -> None:
    with pytest.raises(UsageError, match=r"1\.2"):
        mgaa.sweep(tiny(), tokens, (0.2, 1.2))


def test_factors_out_of_range_leave_the_model_as_it_was(tiny: Tiny, tokens: Tensor) -> None:
    """The values of the last block are one column, whose norm leaves float16; nothing of them reaches the stream."""
    model = tiny().half()
    block = model.base_model.layers[-1]
    block.input_layernorm.weight.data.mul_(0.01)
    block.self_attn.v_proj.weight.data.zero_()[:, 0] = 40000.0
    block.self_attn.o_proj.weight.data.zero_()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NumericalError, match=r"v_proj: factors of rank \d+ leave the range of torch\.float16"):
        mgaa.compress_(model, tokens, compression=0.5, ranks="uniform")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
