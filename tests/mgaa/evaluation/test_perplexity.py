"""Perplexity equals its definition, whatever the batch; what is not a number is an error."""

import math
import statistics
import subprocess
import sys

import pytest
import torch

from mgaa.errors import InputError, NumericalError, UsageError
from mgaa.evaluation.perplexity import perplexity
from tests.support.processes import ROOT

TOKENS = torch.randint(0, 60, (157,), generator=torch.Generator().manual_seed(1))


def by_the_documentation(model, stream, length, stride):
    """The loop of huggingface.co/docs/transformers/perplexity, with the loss of transformers, weighted by scored tokens."""
    total, count, done = 0.0, 0, 0
    for start in range(0, len(stream), stride):
        end = min(start + length, len(stream))
        labels = stream[start:end].clone()
        labels[: -(end - done)] = -100
        scored = int((labels[1:] != -100).sum())
        if scored:
            ids = stream[start:end][None]
            total += scored * model(input_ids=ids, labels=labels[None]).loss.item()
        count, done = count + scored, end
        if end == len(stream):
            break
    return total / count, count


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(("length", "stride"), [(32, 32), (32, 16), (32, 7), (64, 1), (13, 13), (52, 52)])
def test_it_equals_the_loss_of_transformers(tiny, family, length, stride):
    model = tiny(family).double()
    expected, count = by_the_documentation(model, TOKENS, length, stride)
    found = perplexity(model, TOKENS, length=length, stride=stride, batch_size=3)
    assert found.tokens == count
    assert found.nll == pytest.approx(expected, rel=1e-6)  # transformers takes its loss in float32
    assert found.perplexity == math.exp(found.nll)


def test_it_equals_a_naive_sum_of_log_probabilities_in_float64(tiny):
    model = tiny().double()
    losses = []
    for start in range(0, len(TOKENS), 20):
        window = TOKENS[start : start + 20]
        logits = model(input_ids=window[None]).logits[0]
        losses += [-logits[i].log_softmax(0)[window[i + 1]].item() for i in range(len(window) - 1)]
    found = perplexity(model, TOKENS, length=20)
    assert found.tokens == len(losses)
    assert found.nll == pytest.approx(statistics.fmean(losses), rel=1e-12)


def test_the_batch_size_matters_by_rounding_only(tiny):
    model = tiny()
    found = [perplexity(model, TOKENS, length=16, batch_size=size).nll for size in (1, 2, 5, 64)]
    assert found == pytest.approx([found[0]] * 4, rel=1e-6)


def test_the_size_of_chunks_matters_by_nothing(tiny, monkeypatch):
    model = tiny().double()
    whole = perplexity(model, TOKENS, length=32, stride=8)
    monkeypatch.setattr("mgaa.evaluation.perplexity._CHUNK", 200)
    assert perplexity(model, TOKENS, length=32, stride=8).nll == pytest.approx(whole.nll, rel=1e-14)


def test_a_large_vocabulary_is_taken_in_smaller_batches(tiny, monkeypatch):
    model, sizes = tiny(), []
    model.register_forward_pre_hook(lambda _, args, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    monkeypatch.setattr("mgaa.evaluation.perplexity._BATCH", 2 * 16 * 64)
    perplexity(model, TOKENS, length=16, batch_size=8)
    assert max(sizes) == 2


@pytest.mark.parametrize("stride", [16, 4])
def test_the_losses_of_the_windows_are_those_of_each_window_alone_and_add_up(tiny, stride):
    model = tiny().double()
    found = perplexity(model, TOKENS, length=16, stride=stride)
    assert (len(found.losses), len(found.counts)) == (found.windows, found.windows)
    assert sum(found.counts) == found.tokens
    assert found.nll == math.fsum(found.losses) / found.tokens
    for window, (loss, count) in enumerate(zip(found.losses, found.counts, strict=True)):
        ids = TOKENS[window * stride : window * stride + 16][None]
        every = -model(input_ids=ids).logits[0, :-1].log_softmax(1).gather(1, ids[0, 1:, None])
        assert loss == pytest.approx(every[-count:].sum().item(), rel=1e-12)


def test_windows_without_overlap_score_all_but_their_first_token(tiny):
    found = perplexity(tiny(), TOKENS, length=16)
    assert (found.windows, found.tokens, found.length, found.stride) == (10, 157 - 10, 16, 16)


def test_windows_with_overlap_score_every_token_but_the_first(tiny):
    found = perplexity(tiny(), TOKENS, length=16, stride=4)
    assert (found.tokens, found.stride) == (156, 4)


def test_a_last_window_of_one_token_scores_nothing(tiny):
    assert perplexity(tiny(), TOKENS[:33], length=16) == perplexity(tiny(), TOKENS[:32], length=16)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(tiny):
    model = tiny()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = perplexity(model, TOKENS, length=16)
    assert found.perplexity == pytest.approx(64, rel=1e-6)
    assert found.standard_error == pytest.approx(0, abs=1e-6)
    assert found.bits_per_byte(tokens=10, bytes=40) == pytest.approx(6 * 10 / 40, rel=1e-6)


def test_the_standard_error_of_equal_windows_is_that_of_their_means(tiny):
    model = tiny()
    means = [perplexity(model, TOKENS[start : start + 16], length=16).nll for start in range(0, 144, 16)]
    expected = statistics.stdev(means) / math.sqrt(len(means))
    assert perplexity(model, TOKENS[:144], length=16).standard_error == pytest.approx(expected, rel=1e-5)


def test_a_single_window_has_no_standard_error(tiny):
    assert perplexity(tiny(), TOKENS[:16], length=16).standard_error is None


def test_losses_are_taken_in_float32_whatever_the_dtype(tiny):
    model = tiny()
    exact = perplexity(model, TOKENS, length=32).nll
    assert perplexity(model.bfloat16(), TOKENS, length=32).nll == pytest.approx(exact, rel=2e-3)


def test_a_loss_that_is_not_finite_names_its_window(tiny):
    model = tiny()
    with torch.no_grad():
        model.model.embed_tokens.weight[63] = math.nan
    stream = TOKENS.clone()
    stream[50] = 63
    with pytest.raises(NumericalError, match="of the 15 losses in the window of tokens 48 to 64 are not finite"):
        perplexity(model, stream, length=16)


def test_a_perplexity_beyond_float_is_an_error(tiny):
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e5)
    with pytest.raises(NumericalError, match="not finite"):
        perplexity(model, TOKENS, length=16)


def test_the_model_is_left_in_the_mode_it_came_in(tiny):
    model = tiny(attention_dropout=0.5).train()
    first = perplexity(model, TOKENS, length=16)
    assert model.training
    assert first == perplexity(model.eval(), TOKENS, length=16)
    assert not model.training


def test_a_length_beyond_the_models_positions_is_refused(tiny):
    with pytest.raises(UsageError, match="length is 65, expected 2 to 64"):
        perplexity(tiny(), TOKENS, length=65)


@pytest.mark.parametrize("stride", [0, 17])
def test_a_stride_beyond_the_length_is_refused(tiny, stride):
    with pytest.raises(UsageError, match=f"stride is {stride}, expected 1 to 16"):
        perplexity(tiny(), TOKENS, length=16, stride=stride)


def test_a_single_token_is_refused(tiny):
    with pytest.raises(InputError, match="1 tokens, expected at least 2"):
        perplexity(tiny(), TOKENS[:1], length=16)


def test_ids_outside_the_vocabulary_are_refused(tiny):
    with pytest.raises(InputError, match="64 embeddings"):
        perplexity(tiny(), torch.tensor([1, 64]), length=16)


@pytest.mark.slow
def test_losses_take_a_fraction_of_the_memory_of_the_logits() -> None:
    """As the system counts it, holes in the heap included."""
    program = """if True:
        import resource, torch
        from mgaa.evaluation.perplexity import cross_entropy
        def peak():
            return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        logits, targets = torch.ones(8, 128, 49152, dtype=torch.bfloat16), torch.zeros(8, 128, dtype=torch.long)
        cross_entropy(logits[:, :1], targets[:, :1])
        before = peak()
        cross_entropy(logits, targets)
        print((peak() - before) / logits.nbytes)
    """
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(said.stdout) < 1
