"""Where numbers are at the edge: every factorizer, from tokens through statistics and spectra to factors.

The truth that all edges share: at every rank the squared error in the factorizer's own metric is finite and the least possible one; so it
falls with the rank and is nowhere above that of the plain SVD. What is allowed above the optimum is what the damping may cost by its
definition, `DAMPING (||W S||^2 + scale ||W||^2)`, in which the rounding of float64 is included, and `RELATIVE` of the optimum itself.
Measured: 4e-5 of the optimum where channels run from 1e-4 to 1e4 (the optimum is then 1e-12 of all energy), 1e-12 on all other edges.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mgaa.budget import Matrix
from mgaa.decomposition.linalg import DAMPING, Spectrum
from mgaa.errors import NumericalError
from mgaa.factors import decompose_block
from mgaa.methods import available_methods
from mgaa.models.lowrank import Factors
from mgaa.statistics.statistics import InputStatistics
from tests.support.layers import Layer, layer

METHODS = available_methods("factors")
WIDE, TALL = (24, 64), (96, 32)
SHAPES = [WIDE, TALL]
SIDES = [(WIDE, "input"), (WIDE, "output"), (TALL, "input")]
RELATIVE = 1e-4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def channels(x: Tensor, *, every: int, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The tokens with one channel in `every` changed."""
    x = x.clone()
    x[:, ::every] = change(x[:, ::every])
    return x


def of_scales(x: Tensor) -> Tensor:
    scales = torch.logspace(-4, 4, x.shape[1], dtype=torch.float64)
    return x * scales[torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))]


EDGES: dict[str, Callable[[Tensor], Tensor]] = {
    "one token": lambda x: x[:1],
    "two equal tokens": lambda x: x[:1].repeat(2, 1),
    "as many tokens as groups": lambda x: x[:4],
    "fewer tokens than channels": lambda x: x[:9],
    "dead channels": lambda x: channels(x, every=3, change=torch.zeros_like),
    "constant channels": lambda x: channels(x, every=3, change=lambda part: part[:1].expand_as(part)),
    "only constant channels": lambda x: x[:1].bfloat16().double().expand_as(x),
    "duplicated channels": lambda x: x[:, torch.arange(x.shape[1]) // 2],
    "channels from 1e-4 to 1e4": of_scales,
    "all of scale 1e-4": lambda x: x * 1e-4,
    "all of scale 1e4": lambda x: x * 1e4,
    "energies over ten decades": lambda x: layer(1, x.shape[1], condition=1e10).x,
    "means a thousand times the deviation": lambda x: x + 1e3,
    "means of the groups a thousand times the deviation": lambda x: x + 1e3 * random(4, 1).repeat_interleave(100, 0),
    "massive channels": lambda x: channels(x, every=20, change=lambda part: 600 * part),
    "only zeros": torch.zeros_like,
}
FEW = ("fewer tokens than channels", "channels from 1e-4 to 1e4", "massive channels")
"""Edges of the sides that are measured less often: the narrower side is chosen before anything of this file."""
CASES = [(*SIDES[0], edge) for edge in EDGES] + [(*side, edge) for side in SIDES[1:] for edge in FEW]


@contextmanager
def silent() -> Iterator[None]:
    """A zero or constant input warns, which is tested with the decomposition."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def assert_optimal(it: Layer, name: str) -> None:
    with silent():
        found = it.all_factors(name)
    root, output = it.root(name), it.output_root(name)
    least = it.least_in(root, output)
    slack = DAMPING * float(least[0] + it.metric(name).scale * it.weight.square().sum())
    for rank, factors in zip(it.ranks, found, strict=True):
        assert_finite(factors)
        assert it.error_in(root, factors, output) <= float(least[rank]) * (1 + RELATIVE) + slack


def assert_finite(factors: Factors) -> None:
    assert all(bool(part.isfinite().all()) for part in (factors.A, factors.B, factors.bias) if part is not None)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("shape", "side", "edge"), CASES)
def test_the_error_is_the_least_possible_at_every_rank(shape: tuple[int, int], side: str, edge: str, name: str) -> None:
    m, n = shape
    assert_optimal(Layer(EDGES[edge](random(400, n) + 0.5), random(m, n, seed=1), side), name)


@pytest.mark.parametrize("name", METHODS)
@given(
    m=st.integers(1, 9),
    n=st.integers(1, 9),
    tokens=st.integers(1, 12),
    scales=st.lists(st.sampled_from([0.0, 1e-4, 1.0, 1e4]), min_size=9, max_size=9),
    mean=st.sampled_from([0.0, 1.0, 1e3]),
    rank_of_the_weight=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_any_small_layer_reaches_its_optimum(
    name: str, m: int, n: int, tokens: int, scales: list[float], mean: float, rank_of_the_weight: int, seed: int
) -> None:
    x = (random(tokens, n, seed=seed) + mean) * torch.tensor(scales[:n], dtype=torch.float64)
    weight = random(m, rank_of_the_weight, seed=seed + 1) @ random(rank_of_the_weight, n, seed=seed + 2)
    for side in ("input", "output") if m <= n else ("input",):
        assert_optimal(Layer(x, weight, side), name)


# --- what single edges mean


@pytest.mark.parametrize("name", ["whitened", "afm", "pooled"])
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_a_single_token_is_reproduced_at_rank_one(shape: tuple[int, int], side: str, name: str) -> None:
    m, n = shape
    it = Layer(random(1, n), random(m, n, seed=1), side)
    with silent():
        assert it.error(it.factors(name, 1)) <= 1e-24 * float(it.y.square().sum())


@pytest.mark.parametrize("name", ["asvd", "awsvd", "whitened", "afm", "pooled"])
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_dead_channels_change_nothing_for_the_living(shape: tuple[int, int], side: str, name: str) -> None:
    m, n = shape
    it = Layer(EDGES["dead channels"](random(400, n)), random(m, n, seed=1), side)
    living = it.x.any(0)
    without = Layer(it.x[:, living], it.weight[:, living])
    one, two = it.factors(name, 7), without.factors(name, 7)
    torch.testing.assert_close((one.B @ one.A)[:, living], two.B @ two.A, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["afm", "pooled"])
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_constant_channels_cost_nothing_where_a_bias_is_added(shape: tuple[int, int], side: str, name: str) -> None:
    m, n = shape
    it = Layer(EDGES["constant channels"](random(400, n)), random(m, n, seed=1), side)
    moving = it.x.std(0) > 0
    without = Layer(it.x[:, moving], it.weight[:, moving])
    assert it.error(it.factors(name, 7)) == pytest.approx(without.error(without.factors(name, 7)), rel=1e-9)


@pytest.mark.parametrize("name", ["whitened", "afm", "pooled"])
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_a_channel_given_twice_counts_once_with_the_sum_of_its_weights(
    shape: tuple[int, int], side: str, name: str
) -> None:
    m, n = shape
    once, weight = random(400, n // 2), random(m, n, seed=1)
    twice = Layer(once.repeat_interleave(2, 1), weight, side)
    merged = Layer(once, weight[:, ::2] + weight[:, 1::2])
    assert twice.error(twice.factors(name, 5)) == pytest.approx(merged.error(merged.factors(name, 5)), rel=1e-9)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_an_input_that_is_always_zero_gets_the_plain_svd(shape: tuple[int, int], side: str, name: str) -> None:
    it = Layer(torch.zeros(400, shape[1], dtype=torch.float64), random(*shape), side)
    with silent():
        factors = it.factors(name, 5)
    u, s, v = torch.linalg.svd(it.weight, full_matrices=False)
    torch.testing.assert_close(factors.B @ factors.A, (u[:, :5] * s[:5]) @ v[:5], rtol=1e-9, atol=1e-9)
    assert factors.bias is None or not factors.bias.any()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_a_weight_of_zeros_stays_zero(shape: tuple[int, int], side: str, name: str) -> None:
    it = Layer(random(400, shape[1]), torch.zeros(shape, dtype=torch.float64), side)
    factors = it.factors(name, 5)
    assert not it.spectrum(name).energies.any()
    assert_finite(factors)
    assert not (factors.B @ factors.A).any()
    assert factors.bias is None or not factors.bias.any()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (1, 1)])
def test_a_single_row_or_column_is_exact_at_rank_one_and_cheaper_dense(shape: tuple[int, int], name: str) -> None:
    m, n = shape
    it = Layer(random(40, n), random(m, n, seed=1))
    factors = it.factors(name, 1)
    torch.testing.assert_close(factors.B @ factors.A, it.weight, rtol=1e-12, atol=1e-12)
    assert Matrix("linear", "linear", 0, "ffn", m, n, False).largest_rank(centred=factors.bias is not None) == 0


# --- precision of storage


EXCESS = {
    (torch.bfloat16, 1): 1.3e-4,
    (torch.bfloat16, 60): 0.026,
    (torch.bfloat16, 600): 3.0,
    (torch.float16, 1): 2e-6,
    (torch.float16, 60): 5e-4,
    (torch.float16, 600): 0.045,
}
"""By dtype and scale of two massive channels: what storage may cost, as a share of the optimum in float64.

Twice what was measured: 6.5e-5, 0.013, 1.7; 9.5e-7, 2.6e-4, 0.022. The columns of `A` for a massive channel lose `eps` of themselves, so
the excess grows as `(eps * scale)^2`, and falls with the number of other channels: 2 of 24 to 96 are many. Where errors are weighed at the
outputs (condition 1e3), energies fall faster and the optimum is smaller: up to 8.4 times these bounds was measured, 10 are allowed."""


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("dtype", "outlier"), EXCESS)
@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_costs_a_stated_share_of_the_optimum_even_beside_massive_channels(
    shape: tuple[int, int], dtype: torch.dtype, outlier: int, name: str
) -> None:
    m, n = shape
    x = random(400, n) + 0.5 * random(n, seed=2)
    x[:, :2] *= outlier
    it = Layer(x, (random(m, n, seed=1) / n**0.5).to(dtype))
    root, output = it.root(name), it.output_root(name)
    least, weighed = it.least_in(root, output), it.metric(name).output is not None
    for rank, factors in zip(it.ranks, it.all_factors(name), strict=True):
        assert it.error_in(root, factors, output) <= float(least[rank]) * (
            1 + (10 if weighed else 1) * EXCESS[dtype, outlier]
        )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_factors_out_of_range_are_an_error_with_the_remedy(shape: tuple[int, int], name: str) -> None:
    it = Layer(random(400, shape[1]), torch.full(shape, 6e4, dtype=torch.float16))
    with pytest.raises(
        NumericalError, match=r"rank 3 leave the range of torch\.float16: set backbone\.dtype to bfloat16"
    ):
        it.factors(name, 3)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_massive_weight_that_overflows_float16_fits_into_bfloat16(shape: tuple[int, int], name: str) -> None:
    it = Layer(random(400, shape[1]), torch.full(shape, 6e4, dtype=torch.bfloat16))
    factors = it.factors(name, 1)
    assert_finite(factors)
    assert it.error(factors) <= 1e-4 * float(it.y.square().sum() / len(it.x))


# --- damage


VALUES = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("shape", "side", "value"),
    [*((*SIDES[0], value) for value in VALUES), *((*side, float("nan")) for side in SIDES[1:])],
)
def test_a_weight_that_is_not_finite_is_an_error(shape: tuple[int, int], side: str, value: float, name: str) -> None:
    it = layer(*shape, side=side)
    statistics = it.statistics
    it.weight[3, 2] = value
    with pytest.raises(NumericalError, match=r"of linear.* has non-finite entries: .* check the weights and calibrate"):
        decompose_block({"linear": it.weight}, statistics, name)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("field", ["mean", "mean_square", "mean_abs", "covariance", "group_means"])
@pytest.mark.parametrize(
    ("shape", "side", "value"),
    [*((*SIDES[0], value) for value in VALUES[:2]), *((*side, float("nan")) for side in SIDES[1:])],
)
def test_a_damaged_statistic_is_an_error_or_plays_no_part(
    shape: tuple[int, int], side: str, field: str, value: float, name: str
) -> None:
    it = layer(*shape, side=side)
    block = it.statistics
    block.inputs["linear"] = damaged(block.of("linear"), field, value)
    with suppress(NumericalError):
        assert same(decompose_block({"linear": it.weight}, block, name)["linear"], it.spectrum(name))


READ = {
    "svd": set[str](),
    "asvd": {"mean_abs"},
    "awsvd": {"mean_square"},
    "whitened": {"mean_square", "covariance", "group_means"},
    "afm": {"mean", "mean_square", "covariance"},
    "pooled": {"mean", "mean_square", "covariance", "group_means"},
}


@pytest.mark.parametrize(
    ("name", "field"), [(name, field) for name, fields in READ.items() for field in sorted(fields)]
)
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_a_damaged_statistic_that_is_read_names_the_linear_and_the_remedy(
    shape: tuple[int, int], side: str, name: str, field: str
) -> None:
    block = layer(*shape, side=side).statistics
    block.inputs["linear"] = damaged(block.of("linear"), field, float("nan"))
    with pytest.raises(NumericalError, match=r"of linear.* has non-finite entries: .* calibrate again"):
        decompose_block({"linear": layer(*shape).weight}, block, name)


def damaged(statistics: InputStatistics, field: str, value: float) -> InputStatistics:
    """The statistics with one entry of a field replaced."""
    tensor = getattr(statistics, field).clone()
    tensor.view(-1)[1] = value
    return replace(statistics, **{field: tensor})


def same(one: Spectrum, two: Spectrum) -> bool:
    """Bit by bit."""
    means = [part.mean for part in (one, two) if part.mean is not None]
    return (
        torch.equal(one.energies, two.energies)
        and torch.equal(one.basis, two.basis)
        and (not means or torch.equal(*means))
    )
