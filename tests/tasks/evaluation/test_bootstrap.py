"""The bootstrap tells a difference from noise as theory says it should, and says the same every time."""

import statistics

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mgaa.evaluation.perplexity import Perplexity, perplexity
from tasks.evaluation.bootstrap import Bootstrap, Interval, verdict

WINDOWS = 400


def normal(seed: int, mean: float = 0.0, deviation: float = 1.0) -> list[float]:
    return list(np.random.default_rng(seed).normal(mean, deviation, WINDOWS))


def half(interval: Interval) -> float:
    return (interval.high - interval.low) / 2


@pytest.fixture(scope="module")
def measured() -> Perplexity:
    """A random model on windows of unequal counts: half of the tokens repeat, so that windows differ in difficulty."""
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=1, initializer_range=0.5)).eval()
    return perplexity(model, torch.randint(0, 40, (2005,)), length=16, stride=6, batch_size=64)


def test_the_interval_is_that_of_the_standard_error_of_the_perplexity(measured: Perplexity) -> None:
    assert len(set(measured.counts)) > 1
    assert measured.standard_error is not None
    found = Bootstrap(measured.counts).nll(measured.losses)
    assert found.value == pytest.approx(measured.nll, rel=1e-12)
    assert half(found) == pytest.approx(1.96 * measured.standard_error, rel=0.06)


def test_equal_models_differ_by_exactly_nothing() -> None:
    losses = normal(seed=0)
    assert Bootstrap([7] * WINDOWS).difference(losses, losses) == Interval(0.0, 0.0, 0.0)


def test_a_difference_that_is_the_same_in_all_windows_is_certain() -> None:
    counts = [7, 5] * (WINDOWS // 2)
    losses = normal(seed=0)
    lower = [loss - 0.01 * count for loss, count in zip(losses, counts, strict=True)]
    found = Bootstrap(counts).difference(lower, losses)
    assert (found.value, found.low, found.high) == pytest.approx((-0.01, -0.01, -0.01), rel=1e-9)
    assert verdict(found) == "better"


def test_windows_that_are_hard_for_both_models_widen_neither_their_difference() -> None:
    hardness = np.asarray(normal(seed=0, deviation=10.0))
    ours, theirs = hardness + normal(seed=1), hardness + normal(seed=2, mean=0.5)
    bootstrap = Bootstrap([1] * WINDOWS)
    paired = half(bootstrap.difference(ours, theirs))
    unpaired = (half(bootstrap.nll(ours)) ** 2 + half(bootstrap.nll(theirs)) ** 2) ** 0.5
    assert paired == pytest.approx(1.96 * (2 / WINDOWS) ** 0.5, rel=0.1)
    assert unpaired > 8 * paired
    assert verdict(bootstrap.difference(ours, theirs)) == "better"
    assert verdict(bootstrap.difference(theirs, ours)) == "worse"


def test_of_equals_about_one_in_twenty_seems_to_differ() -> None:
    bootstrap = Bootstrap([1] * WINDOWS)
    verdicts = [verdict(bootstrap.nll(normal(seed))) for seed in range(400)]
    assert 8 <= 400 - verdicts.count("undecided") <= 36  # 20 expected, 4.4 of standard deviation


def test_the_same_windows_give_the_same_interval_and_another_seed_hardly_another() -> None:
    losses = normal(seed=0)
    assert Bootstrap([1] * WINDOWS).nll(losses) == Bootstrap([1] * WINDOWS).nll(losses)
    found = [Bootstrap([1] * WINDOWS, seed=seed).nll(losses) for seed in range(20)]
    assert 0 < statistics.stdev(each.low for each in found) < 0.025 * 2 * half(found[0])


def test_a_single_window_says_nothing() -> None:
    found = Bootstrap([5]).difference([1.0], [9.0])
    assert found.value == pytest.approx(-1.6)
    assert np.isnan([found.low, found.high]).all()
    assert verdict(found) == "undecided"
