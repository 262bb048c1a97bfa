"""The objective equals its definition on every architecture, whatever the batch, and leaves the model alone."""

import math
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.evaluation.perplexity import perplexity
from mgaa.search import objective, reference
from tests.mgaa.conftest import FAMILIES

WINDOWS = torch.randint(0, 60, (5, 16), generator=torch.Generator().manual_seed(1))
Pair = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture
def pair(tiny: Callable[..., PreTrainedModel], compress: Callable[..., PreTrainedModel]) -> Callable[..., Pair]:
    """A dense model, and itself compressed."""

    def make(family: str = "llama", **settings: object) -> Pair:
        dense = tiny(family, **settings)
        return dense, compress(deepcopy(dense), keep=0.5)

    return make


def by_definition(ours: PreTrainedModel, theirs: PreTrainedModel, windows: Tensor) -> float:
    """Mean over windows of the sum over tokens of KL(ours || theirs), from the logits of both, in float64."""
    with torch.no_grad():
        p, q = (model(input_ids=windows).logits.double().log_softmax(-1) for model in (ours, theirs))
    return float((p.exp() * (p - q)).sum(dim=(1, 2)).mean())


def hooks(model: PreTrainedModel) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


# --- the definition


@pytest.mark.parametrize("family", FAMILIES)
def test_the_divergence_is_that_of_the_full_logits_of_both_models(pair: Any, family: str) -> None:
    dense, model = pair(family)
    kept = reference(dense, WINDOWS)
    expected = by_definition(model, dense, WINDOWS)
    found = objective(model, WINDOWS, kept)
    assert expected > 0.1
    assert found.divergence == pytest.approx(expected, rel=1e-5)  # logits and log-softmax are float32
    assert objective(dense, WINDOWS, kept).divergence == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "behind"), [("granite", {"logits_scaling": 4.0}), ("gemma2", {"final_logit_softcapping": 1.0})]
)
def test_what_a_model_does_behind_its_head_is_in_the_divergence(pair: Any, family: str, behind: dict[str, Any]) -> None:
    dense, model = pair(family, **behind)
    found = objective(model, WINDOWS, reference(dense, WINDOWS)).divergence
    assert found == pytest.approx(by_definition(model, dense, WINDOWS), rel=1e-5)
    plain, other = pair(family)
    assert found < 0.7 * objective(other, WINDOWS, reference(plain, WINDOWS)).divergence


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2"])
def test_the_perplexity_is_that_of_the_same_windows_as_a_stream(pair: Any, family: str) -> None:
    _, model = pair(family)
    expected = perplexity(model, WINDOWS.flatten(), length=16)
    found = objective(model, WINDOWS, None, weight=0.0)
    assert found.perplexity == pytest.approx(expected.perplexity, rel=1e-6)
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)


@pytest.mark.parametrize("weight", [1e-3, 0.5])
def test_the_objective_is_the_perplexity_and_the_weighted_divergence(pair: Any, weight: float) -> None:
    dense, model = pair()
    found = objective(model, WINDOWS, reference(dense, WINDOWS), weight=weight)
    assert found.objective == found.perplexity + weight * found.divergence
    assert found.divergence > 0


def test_without_a_weight_no_reference_is_needed(pair: Any) -> None:
    _, model = pair()
    found = objective(model, WINDOWS, None, weight=0.0)
    assert (found.objective, found.divergence) == (found.perplexity, 0.0)


def test_the_sum_over_tokens_grows_with_the_windows_and_the_mean_does_not(pair: Any) -> None:
    dense, model = pair()
    once = objective(model, WINDOWS, reference(dense, WINDOWS)).divergence
    twice = WINDOWS.repeat(2, 1)
    assert objective(model, twice, reference(dense, twice)).divergence == pytest.approx(once, rel=1e-6)
    halves = WINDOWS[:, :8]
    assert objective(model, halves, reference(dense, halves)).divergence < 0.7 * once


def test_the_reference_is_what_enters_the_head_in_the_dtype_of_the_model(tiny: Any) -> None:
    model = tiny().bfloat16()
    kept = reference(model, WINDOWS, batch_size=2)
    assert (kept.shape, kept.dtype) == ((5, 16, 32), torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(model.lm_head(kept), model(input_ids=WINDOWS).logits, rtol=2e-2, atol=2e-2)


# --- what must not matter


def test_the_batch_size_matters_by_rounding_only(pair: Any) -> None:
    dense, model = pair()
    whole = objective(model, WINDOWS, reference(dense, WINDOWS))
    for size in (1, 2, 64):
        found = objective(model, WINDOWS, reference(dense, WINDOWS, batch_size=size), batch_size=size)
        assert found.objective == pytest.approx(whole.objective, rel=1e-6)
        assert found.divergence == pytest.approx(whole.divergence, rel=1e-5)
        assert found.losses == pytest.approx(whole.losses, rel=1e-6)


def test_the_size_of_chunks_matters_by_rounding_only(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, model = pair()
    kept = reference(dense, WINDOWS)
    whole = objective(model, WINDOWS, kept)
    module = import_module("mgaa.search.objective")  # the package has a function of that name
    monkeypatch.setattr(module, "_CHUNK", 5 * 64 * 3)  # three positions at a time, the last one alone
    found = objective(model, WINDOWS, kept)
    assert (found.perplexity, found.divergence) == pytest.approx((whole.perplexity, whole.divergence), rel=1e-6)


def test_a_large_vocabulary_is_taken_in_smaller_batches(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = tiny(), list[int]()
    model.register_forward_pre_hook(lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    monkeypatch.setattr("mgaa.evaluation.perplexity._BATCH", 2 * 16 * 64)
    objective(model, WINDOWS, reference(model, WINDOWS))
    assert max(sizes) == 2


# --- what is left behind


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(pair: Any, training: bool) -> None:
    dense, model = pair()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for each in (dense, model):
        each.train(training)
    objective(model, WINDOWS, reference(dense, WINDOWS))
    assert [(each.training, hooks(each)) for each in (dense, model)] == [(training, 0)] * 2
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_dropout_is_off_while_a_model_is_measured(tiny: Any) -> None:
    model = tiny(attention_dropout=0.5).train()
    kept = reference(model, WINDOWS)
    assert torch.equal(kept, reference(model, WINDOWS))
    assert objective(model, WINDOWS, kept).divergence == pytest.approx(0, abs=1e-5)


class Broken(nn.Module):
    def forward(self, *_: Any, **__: Any) -> Tensor:
        raise RuntimeError("broken")


@pytest.mark.parametrize("broken", ["model.layers.1.mlp", "lm_head"])
def test_the_model_is_left_as_it_was_after_an_error(tiny: Any, broken: str) -> None:
    model = tiny().train()
    kept = reference(model, WINDOWS)
    model.set_submodule(broken, Broken())
    with pytest.raises(RuntimeError, match="broken"):
        reference(model, WINDOWS)
    with pytest.raises(RuntimeError, match="broken"):
        objective(model, WINDOWS, kept)
    assert model.training
    assert hooks(model) == 0


# --- refusals


def test_weights_that_are_not_finite_are_an_error_that_names_the_windows(pair: Any) -> None:
    dense, model = pair()
    kept = reference(dense, WINDOWS)
    with torch.no_grad():
        model.model.embed_tokens.weight[63] = math.nan
    windows = WINDOWS.clone()
    windows[3, 5] = 63
    with pytest.raises(
        NumericalError, match=r"of the windows 2 to 3 is not finite, expected finite numbers: .*bfloat16"
    ):
        objective(model, windows, kept, batch_size=2)
    assert hooks(model) == 0


def test_a_reference_that_is_not_finite_is_an_error(pair: Any) -> None:
    dense, model = pair()
    kept = reference(dense, WINDOWS).clone()
    kept[4, 0, 0] = math.inf
    with pytest.raises(NumericalError, match="of the windows 0 to 4 is not finite"):
        objective(model, WINDOWS, kept)


def test_a_perplexity_beyond_float_is_an_error(tiny: Any) -> None:
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    with pytest.raises(NumericalError, match="so the perplexity is not finite: the model is broken"):
        objective(model, WINDOWS, None, weight=0.0)


def test_a_weight_without_a_reference_is_refused(tiny: Any) -> None:
    message = r"the weight 0\.001 and the dense reference is none: expected one of 5 windows of 16 tokens"
    with pytest.raises(UsageError, match=message):
        objective(tiny(), WINDOWS, None)


@pytest.mark.parametrize(("count", "length"), [(4, 16), (5, 12)])
def test_a_reference_of_other_windows_is_refused(tiny: Any, count: int, length: int) -> None:
    model = tiny()
    kept = reference(model, WINDOWS[:count, :length])
    with pytest.raises(UsageError, match=f"one of {count} windows of {length} tokens: expected one of 5 windows of 16"):
        objective(model, WINDOWS, kept)


def test_windows_longer_than_the_positions_of_the_model_are_refused(tiny: Any) -> None:
    model, windows = tiny(), torch.zeros(1, 65, dtype=torch.int64)
    with pytest.raises(UsageError, match="length is 65, expected 2 to 64"):
        reference(model, windows)
    with pytest.raises(UsageError, match="length is 65, expected 2 to 64"):
        objective(model, windows, None, weight=0.0)


def test_a_model_without_a_head_is_refused(tiny: Any) -> None:
    with pytest.raises(InputError, match="LlamaModel has no head"):
        reference(tiny().model, WINDOWS)
