"""Bolaco's covariance on a real model: what is streamed is what its definition says of activations that hooks have stored.

The definition: `Cov_P = sum_k (n_k / n) Cov(Y_k)`, groups of consecutive sequences, each centred at its own mean, of the outputs without
their bias. What holds of one layer alone is in test_factors.py.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from mgaa.decomposition.linalg import Metric
from mgaa.methods import method
from mgaa.models.architectures import matrices_of
from mgaa.statistics.calibration import stream_statistics
from mgaa.statistics.statistics import InputStatistics

Tiny = Callable[..., PreTrainedModel]
CUTS = {1: [6], 3: [2, 2, 2], 4: [2, 1, 2, 1], 6: [1] * 6}
"""How many of six sequences fall into each group, by the number of groups."""
FAMILIES = ["llama", "llama, biased", "qwen3"]  # of the last, o is measured on the output as well as down


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, eq=False)
class Stored:
    """Activations of one linear by sequence, `(sequences, tokens, channels)`, in float64: its input, and its output without the bias."""

    x: Tensor
    y: Tensor
    weight: Tensor
    bias: Tensor | None

    def of(self, side: str) -> Tensor:
        return self.x if side == "input" else self.y


def stored(model: PreTrainedModel, tokens: Tensor) -> dict[str, Stored]:
    """What hooks see of every linear of the blocks while the whole model runs."""
    seen: dict[str, Stored] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(linear: torch.nn.Linear, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            bias = None if linear.bias is None else linear.bias.detach()
            seen[name] = Stored(arguments[0], output if bias is None else output - bias, linear.weight.detach(), bias)

        return hook

    handles = [model.get_submodule(x.name).register_forward_hook(watch(x.name)) for x in matrices_of(model)]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return seen


def parts(z: Tensor, groups: int) -> list[Tensor]:
    """The tokens of each group."""
    return [part.flatten(0, 1) for part in z.split(CUTS[groups])]


def covariance(x: Tensor) -> Tensor:
    return torch.cov(x.T, correction=0)


def definition(z: Tensor, groups: int) -> Tensor:
    """The covariance pooled over the groups."""
    of = parts(z, groups)
    return sum((len(part) * covariance(part) for part in of), torch.zeros(())) / sum(len(part) for part in of)


def close(found: Tensor, expected: Tensor) -> None:
    """Equal to 1e-9 of the largest entry."""
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def each(model: PreTrainedModel, tokens: Tensor, groups: int) -> list[tuple[Stored, InputStatistics, Metric]]:
    """Of every linear: what hooks store, what is streamed, and the metric of `pooled`."""
    seen, pooled = stored(model, tokens), method("factors", "pooled", {})
    streamed = list(stream_statistics(model, tokens, groups=groups, batch_size=4))
    inputs = {x.name: streamed[x.block].of(x.local) for x in matrices_of(model)}
    return [(seen[name], found, pooled(found)) for name, found in inputs.items()]


@pytest.mark.parametrize("groups", CUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_metric_is_the_definition_computed_from_stored_activations(
    tiny: Tiny, tokens: Tensor, family: str, groups: int
) -> None:
    """On the side that was measured, and of the outputs for either side, which is what the paper writes."""
    sides = set()
    for seen, _, metric in each(tiny(family).double(), tokens, groups):
        close(metric.moment, definition(seen.of(metric.side), groups))
        outputs = metric.moment if metric.side == "output" else seen.weight @ metric.moment @ seen.weight.T
        close(outputs, definition(seen.y, groups))
        sides.add(metric.side)
    assert sides == {"input", "output"}


def test_down_is_measured_on_its_outputs_without_their_bias(tiny: Tiny, tokens: Tensor) -> None:
    model = tiny("llama, biased").double()
    sides = {x.name: metric.side for x, (_, _, metric) in zip(matrices_of(model), each(model, tokens, 3), strict=True)}
    assert {name.rpartition(".")[2] for name, side in sides.items() if side == "output"} == {"down_proj"}
    assert all(seen.bias is not None for seen in stored(model, tokens).values())


@pytest.mark.parametrize("groups", [3, 6])
def test_over_equal_groups_it_is_the_plain_mean_of_the_paper_and_the_moment_less_that_of_the_means(
    tiny: Tiny, tokens: Tensor, groups: int
) -> None:
    """`mean_k Cov(Y_k) = G - mean_k mu_k mu_k^T`."""
    for seen, _, metric in each(tiny().double(), tokens, groups):
        of = parts(seen.of(metric.side), groups)
        close(metric.moment, torch.stack([covariance(part) for part in of]).mean(0))
        whole, means = torch.cat(of), torch.stack([part.mean(0) for part in of])
        close(metric.moment, whole.T @ whole / len(whole) - means.T @ means / groups)


def test_over_unequal_groups_a_token_counts_alike_and_so_it_is_not_the_plain_mean(tiny: Tiny, tokens: Tensor) -> None:
    for seen, _, metric in each(tiny().double(), tokens, 4):
        plain = torch.stack([covariance(part) for part in parts(seen.of(metric.side), 4)]).mean(0)
        assert float((metric.moment - plain).abs().max()) > 1e-3 * float(plain.abs().max())


def test_in_one_group_it_is_the_covariance_that_afm_takes(tiny: Tiny, tokens: Tensor) -> None:
    afm = method("factors", "afm", {})
    for seen, found, metric in each(tiny().double(), tokens, 1):
        close(metric.moment, afm(found).moment)
        close(metric.moment, covariance(seen.of(metric.side).flatten(0, 1)))
        assert torch.equal(metric.mean, afm(found).mean)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", [3, 4])
def test_the_factors_project_on_its_eigenvectors_and_the_bias_returns_the_mean_of_all_tokens(
    tiny: Tiny, tokens: Tensor, family: str, groups: int
) -> None:
    """`B A = U_r U_r^T W`, and `b' = c + (W - B A) mean`, the mean over tokens and not that over groups."""
    model = tiny(family).double()
    seen = stored(model, tokens)
    report = mgaa.compress_(model, tokens, compression=0.4, factors="pooled", groups=groups)
    for matrix in report.matrices:
        if matrix.rank is None:
            continue
        it, layer = seen[matrix.name], model.get_submodule(matrix.name)
        leading = torch.linalg.eigh(definition(it.y, groups)).eigenvectors[:, -matrix.rank :]
        product = leading @ leading.T @ it.weight
        own = torch.zeros(()) if it.bias is None else it.bias
        x = it.x.flatten(0, 1)
        with torch.no_grad():
            found = layer(x)
        centred = (x - x.mean(0)) @ product.T
        close(found, centred + it.weight @ x.mean(0) + own)
        close(found.mean(0), it.y.flatten(0, 1).mean(0) + own)
