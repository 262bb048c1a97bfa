"""The contract of every factorizer in `mgaa/factors` (a new file is tested without a new line), and the theorems of each."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from mgaa.decomposition.linalg import decompose
from mgaa.errors import NumericalError, UsageError
from mgaa.factors import factorize, load_energies, load_spectra, save_spectra, spectra
from mgaa.methods import available, method
from mgaa.statistics.statistics import BlockStatistics
from tests.support.layers import SHAPES, SIDES, Layer, dropped, gather, groups_of, layer

METHODS = available("factors")


# --- the contract of every factorizer


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_energies_fall_and_the_basis_reaches_break_even(shape: tuple[int, int], name: str) -> None:
    it = layer(*shape)
    spectrum = it.spectrum(name)
    assert spectrum.energies.dtype == torch.float64
    assert spectrum.energies.shape == (min(shape),)
    assert bool((spectrum.energies[:-1] >= spectrum.energies[1:]).all())
    assert bool((spectrum.energies >= 0).all())
    assert spectrum.basis.shape == (shape[0], it.ranks[-1])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_full_rank_is_exact(shape: tuple[int, int], side: str, name: str) -> None:
    it, bias = layer(*shape, side=side), torch.linspace(-1, 1, shape[0], dtype=torch.float64)
    metric = method("factors", name, {})(it.statistics.of("linear"))
    factors = factorize(it.weight, bias, decompose(it.weight, metric), min(shape))
    torch.testing.assert_close(factors.B @ factors.A, it.weight, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(factors.bias, bias, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_the_squared_error_in_its_own_metric_is_the_sum_of_the_dropped_energies(
    shape: tuple[int, int], side: str, name: str
) -> None:
    it = layer(*shape, side=side)
    energies, root, output = it.spectrum(name).energies, it.root(name), it.output_root(name)
    for rank, factors in zip(it.ranks, it.all_factors(name), strict=True):
        missing = float(energies[rank:].sum())
        error = it.error_in(root, factors, output)
        assert error == pytest.approx(missing, rel=1e-7, abs=1e-11 * float(energies.sum()))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_it_is_the_plain_svd_of_the_weight_times_a_root_of_the_metric(
    shape: tuple[int, int], side: str, name: str
) -> None:
    """`[W S]_r S^-1` with an inverse, as the papers have it; the tokens are well-conditioned, so it exists."""
    it = layer(*shape, side=side)
    root, output = it.root(name), it.output_root(name)
    u, s, v = torch.linalg.svd(output.T @ it.weight @ root, full_matrices=False)
    torch.testing.assert_close(it.spectrum(name).energies, s.square(), rtol=1e-8, atol=0)
    for rank in (1, it.ranks[-1]):
        weighed = torch.linalg.solve(root, (u[:, :rank] * s[:rank]) @ v[:rank], left=False)
        expected = torch.linalg.solve(output.T, weighed)
        factors = it.factors(name, rank)
        torch.testing.assert_close(factors.B @ factors.A, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_more_rank_never_costs_more_error_in_the_metric(shape: tuple[int, int], name: str) -> None:
    it = layer(*shape)
    root, output = it.root(name), it.output_root(name)
    errors = torch.tensor([it.error_in(root, factors, output) for factors in it.all_factors(name)])
    assert bool((errors[1:] <= errors[:-1] * (1 + 1e-9)).all())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_smaller_ranks_are_prefixes_of_larger_ones(shape: tuple[int, int], name: str) -> None:
    it = layer(*shape)
    small, large = it.factors(name, 3), it.factors(name, 9)
    assert torch.equal(small.B, large.B[:, :3])
    torch.testing.assert_close(small.A, large.A[:3], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_statistics_of_the_output_give_what_those_of_the_input_give(shape: tuple[int, int], name: str) -> None:
    of_input, of_output = layer(*shape), layer(*shape, side="output")
    assert of_output.statistics.of("linear").side == "output"
    torch.testing.assert_close(of_output.spectrum(name).energies, of_input.spectrum(name).energies, rtol=1e-8, atol=0)
    one, two = of_input.factors(name, 7), of_output.factors(name, 7)
    torch.testing.assert_close(two.B @ two.A, one.B @ one.A, rtol=1e-7, atol=1e-7)
    assert (one.bias is None) == (two.bias is None)
    if one.bias is not None:
        torch.testing.assert_close(two.bias, one.bias, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_without_a_bias_none_beats_whitened_and_with_one_none_beats_afm(
    shape: tuple[int, int], side: str, name: str
) -> None:
    it = layer(*shape, side=side)
    best = "afm" if it.spectrum(name).mean is not None else "whitened"
    for factors, least in zip(it.all_factors(name), it.all_factors(best), strict=True):
        assert it.error(least) <= it.error(factors) * (1 + 1e-9)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_the_input_does_not_change_the_factors(name: str, scale: float) -> None:
    it = layer(24, 64)
    one, two = it.factors(name, 7), Layer(it.x * scale, it.weight).factors(name, 7)
    torch.testing.assert_close(two.B @ two.A, one.B @ one.A, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_twice_the_same_is_bit_equal(name: str) -> None:
    one, two = (layer(96, 32).factors(name, 7) for _ in range(2))
    assert torch.equal(one.A, two.A)
    assert torch.equal(one.B, two.B)


@pytest.mark.parametrize("name", METHODS)
def test_a_misspelt_option_is_refused_with_the_valid_ones(name: str) -> None:
    with pytest.raises(UsageError, match=rf"factors\.centre is not an option of the method '{name}'; it takes "):
        spectra({}, layer(24, 64).statistics, name, centre=True)


def test_an_unknown_factorizer_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=rf"factors\.method is 'afn', expected one of {', '.join(METHODS)}"):
        spectra({}, layer(24, 64).statistics, "afn")


@pytest.mark.parametrize("rank", [-1, 0, 18, 24])
def test_a_rank_that_the_spectrum_does_not_hold_is_refused(rank: int) -> None:
    with pytest.raises(
        UsageError, match=rf"rank {rank} of a 24 x 64 matrix: expected 1 to 17, .* keep the matrix dense"
    ):
        layer(24, 64).factors("svd", rank)


# --- whitened and afm: the optimum on data, also from a file


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", ["whitened", "afm"])
def test_the_layer_error_is_the_optimum(
    tmp_path: Path, shape: tuple[int, int], name: str, stored: bool, condition: float
) -> None:
    """`whitened` cannot be beaten without a bias, `afm` cannot be beaten at all: they are the SVD of the outputs and their PCA.

    The optimum of `||Y - Y'||` over all `Y'` of rank r is a lower bound, and it is reached because `Y' = X W'^T` is such a `Y'`.
    """
    it = layer(*shape, condition=condition)
    spectrum = it.spectrum(name)
    if stored:
        save_spectra({"linear": spectrum}, tmp_path / "spectra.safetensors")
        spectrum = load_spectra(tmp_path / "spectra.safetensors")["linear"]
    best = dropped(it.y if name == "whitened" else it.y - it.y.mean(0)) / len(it.x)
    for rank in it.ranks:
        assert it.error(factorize(it.weight, None, spectrum, rank)) <= float(best[rank]) * (1 + 1e-6)


@pytest.mark.parametrize("condition", [1e2, 1e10])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["whitened", "afm"])
def test_the_layer_error_is_the_optimum_for_a_weight_without_full_rank(
    shape: tuple[int, int], name: str, condition: float
) -> None:
    it = layer(*shape, condition=condition)
    low = it.weight.clone()
    low[:, 1::2] = low[:, ::2]
    it = Layer(it.x, low)
    best = dropped(it.y if name == "whitened" else it.y - it.y.mean(0)) / len(it.x)
    for rank, factors in zip(it.ranks, it.all_factors(name), strict=True):
        assert it.error(factors) <= float(best[rank]) * (1 + 1e-6) + 1e-14 * float(best[0])


@pytest.mark.parametrize("mean", [0.0, 0.5, 5.0])
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_afm_with_its_bias_is_never_worse_than_whitened(shape: tuple[int, int], side: str, mean: float) -> None:
    it = layer(*shape, mean=mean, side=side)
    for centred, uncentred in zip(it.all_factors("afm"), it.all_factors("whitened"), strict=True):
        assert it.error(centred) <= it.error(uncentred) * (1 + 1e-9)


@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_afm_is_the_principal_component_analysis_of_the_outputs(shape: tuple[int, int], side: str) -> None:
    it = layer(*shape, side=side)
    mean = it.y.mean(0)
    components = torch.linalg.svd(it.y - mean, full_matrices=False).Vh[:6]
    reconstructed = (it.y - mean) @ components.T @ components + mean
    factors = it.factors("afm", 6)
    assert factors.bias is not None
    torch.testing.assert_close(it.x @ (factors.B @ factors.A).T + factors.bias, reconstructed, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_whitened_is_the_cholesky_whitened_svd(shape: tuple[int, int], side: str) -> None:
    it = layer(*shape, side=side)
    S = torch.linalg.cholesky(it.x.T @ it.x)
    u, s, v = torch.linalg.svd(it.weight @ S, full_matrices=False)
    expected = torch.linalg.solve_triangular(S, (u[:, :6] * s[:6]) @ v[:6], upper=False, left=False)
    factors = it.factors("whitened", 6)
    torch.testing.assert_close(factors.B @ factors.A, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_on_tokens_around_zero_afm_is_whitened(shape: tuple[int, int], side: str) -> None:
    it = layer(*shape)
    around_zero = Layer(it.x - it.x.mean(0), it.weight, side)
    centred, uncentred = (around_zero.factors(name, 6) for name in ("afm", "whitened"))
    torch.testing.assert_close(centred.B @ centred.A, uncentred.B @ uncentred.A, rtol=1e-9, atol=1e-9)
    assert centred.bias is not None
    assert float(centred.bias.abs().max()) <= 1e-12


# --- asvd and awsvd: a weight per channel


def weighted_svd(weight: Tensor, channels: Tensor, rank: int) -> Tensor:
    """`[W S]_r S^-1` with a diagonal `S`."""
    u, s, v = torch.linalg.svd(weight * channels, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank] / channels


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_asvd_weighs_a_channel_by_its_mean_magnitude_to_the_power_alpha(
    shape: tuple[int, int], side: str, alpha: float
) -> None:
    it = layer(*shape, side=side)
    factors = it.factors("asvd", 6, alpha=alpha)
    expected = weighted_svd(it.weight, it.x.abs().mean(0) ** alpha, 6)
    torch.testing.assert_close(factors.B @ factors.A, expected, rtol=1e-8, atol=1e-8)


def test_asvd_takes_the_root_of_the_magnitude_by_default() -> None:
    one, two = layer(24, 64).factors("asvd", 6), layer(24, 64).factors("asvd", 6, alpha=0.5)
    assert torch.equal(one.A, two.A)


@pytest.mark.parametrize("alpha", [0.0, -0.5, math.nan, math.inf])
def test_asvd_refuses_an_alpha_that_is_not_a_positive_number(alpha: float) -> None:
    with pytest.raises(UsageError, match=rf"factors\.alpha is {alpha}, expected a positive number such as 0\.5"):
        layer(24, 64).factors("asvd", 6, alpha=alpha)


@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_awsvd_weighs_a_channel_by_its_norm(shape: tuple[int, int], side: str) -> None:
    it = layer(*shape, side=side)
    factors = it.factors("awsvd", 6)
    torch.testing.assert_close(
        factors.B @ factors.A, weighted_svd(it.weight, it.x.norm(dim=0), 6), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_on_channels_without_correlation_awsvd_is_whitened(shape: tuple[int, int], side: str) -> None:
    it = layer(*shape)
    apart = Layer(torch.linalg.qr(it.x).Q * torch.logspace(0, 2, shape[1], dtype=torch.float64), it.weight, side)
    diagonal, full = apart.factors("awsvd", 6), apart.factors("whitened", 6)
    torch.testing.assert_close(diagonal.B @ diagonal.A, full.B @ full.A, rtol=1e-8, atol=1e-8)


# --- kronecker: errors weighed by their effect on the loss


@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_with_equal_gradients_everywhere_kronecker_is_afm(shape: tuple[int, int], side: str) -> None:
    it = layer(*shape, side=side)
    even = replace(it.statistics, gradients={"linear": torch.eye(shape[0], dtype=torch.float64)})
    spectrum = spectra({"linear": it.weight}, even, "kronecker")["linear"]
    torch.testing.assert_close(spectrum.energies, it.spectrum("afm").energies, rtol=1e-3, atol=0)
    one, two = factorize(it.weight, None, spectrum, 6), it.factors("afm", 6)
    torch.testing.assert_close(one.B @ one.A, two.B @ two.A, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_of_independent_inputs_and_gradients_no_factorizer_has_a_smaller_second_order_loss(
    shape: tuple[int, int], side: str
) -> None:
    """`E[(g^T E x)^2]` over all pairs of a token and a gradient, each of which stands for a row of the two roots."""
    it = layer(*shape, side=side)
    pairs = it.x - it.x.mean(0), it.output_root("kronecker").T
    ranks = list(it.ranks)[::4]
    for name in METHODS:
        for rank in ranks:
            missing = [
                it.weight - factors.B @ factors.A for factors in (it.factors("kronecker", rank), it.factors(name, rank))
            ]
            best, other = (float((pairs[1] @ each @ pairs[0].T).square().sum()) for each in missing)
            assert best <= other * (1 + 1e-9)


def test_the_energies_of_kronecker_grow_with_the_gradients_and_its_factors_do_not_change() -> None:
    it = layer(24, 64)
    larger = replace(it.statistics, gradients={"linear": 100 * it.gradient})
    spectrum = spectra({"linear": it.weight}, larger, "kronecker")["linear"]
    torch.testing.assert_close(spectrum.energies, 100 * it.spectrum("kronecker").energies, rtol=1e-9, atol=0)
    one, two = factorize(it.weight, None, spectrum, 6), it.factors("kronecker", 6)
    torch.testing.assert_close(one.B @ one.A, two.B @ two.A, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rounding_of_the_weighed_basis_costs_little(dtype: torch.dtype) -> None:
    """A basis on other axes than its dual, in 16 bits: the error stays within a few percent of the optimum."""
    it = layer(48, 48)
    low = Layer(it.x, it.weight.to(dtype))
    root, output = low.root("kronecker"), low.output_root("kronecker")
    least = low.least_in(root, output)
    for rank in list(low.ranks)[::5]:
        assert low.error_in(root, low.factors("kronecker", rank), output) <= float(least[rank]) * 1.05


def test_an_output_without_any_gradient_gets_the_plain_svd_and_no_energy() -> None:
    it = layer(24, 64)
    dead = replace(it.statistics, gradients={"linear": torch.zeros(24, 24, dtype=torch.float64)})
    with pytest.warns(UserWarning, match="the input of linear is zero .* or its output has no effect"):
        spectrum = spectra({"linear": it.weight}, dead, "kronecker")["linear"]
    assert not spectrum.energies.any()


def test_kronecker_without_gradients_says_what_to_set() -> None:
    it = layer(24, 64)
    with pytest.raises(
        UsageError, match=r"statistics have no output gradients, .* measure them by mgaa\.statistics\.gradients"
    ):
        spectra({"linear": it.weight}, gather(it.x), "kronecker")


def test_gradients_that_are_not_finite_are_refused_with_the_name_of_the_matrix() -> None:
    it = layer(24, 64)
    broken = replace(it.statistics, gradients={"linear": it.gradient * math.nan})
    with pytest.raises(NumericalError, match="the second moment of the gradients at linear is not finite"):
        spectra({"linear": it.weight}, broken, "kronecker")


@pytest.mark.parametrize("damping", [0.0, -1.0, math.nan, math.inf])
def test_kronecker_refuses_a_damping_that_is_not_a_positive_number(damping: float) -> None:
    with pytest.raises(UsageError, match=rf"factors\.damping is {damping}, expected a positive number"):
        layer(24, 64).factors("kronecker", 6, damping=damping)


# --- pooled: covariances inside groups


@pytest.mark.parametrize("side", ["input", "output"])
def test_the_pooled_metric_of_equal_groups_is_the_mean_of_their_covariances(side: str) -> None:
    it = layer(24, 64, side=side)
    parts = groups_of(it.x if side == "input" else it.y)
    assert {len(part) for part in parts} == {100}
    expected = torch.stack([torch.cov(part.T, correction=0) for part in parts]).mean(0)
    moment = method("factors", "pooled", {})(it.statistics.of("linear")).moment
    torch.testing.assert_close(moment, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tokens", [400, 371, 9])  # 9: five sequences of two tokens and of one, in four groups
@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_pooled_is_the_principal_component_analysis_inside_the_groups(
    shape: tuple[int, int], side: str, tokens: int
) -> None:
    """Every token is measured from the mean of its group; groups of any size count by their tokens."""
    it = layer(*shape, tokens=tokens, side=side)
    inside = torch.cat([part - part.mean(0) for part in groups_of(it.x)])
    best = dropped(inside @ it.weight.T)
    for rank, factors in zip(it.ranks, it.all_factors("pooled"), strict=True):
        missing = inside @ (it.weight - factors.B @ factors.A).T
        assert float(missing.square().sum()) <= float(best[rank]) * (1 + 1e-9) + 1e-12 * float(best[0])


@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_in_a_single_group_pooled_is_afm(shape: tuple[int, int], side: str) -> None:
    it = layer(*shape, side=side)
    statistics = gather(it.x, it.weight if side == "output" else None, groups=1)
    pooled, afm = (
        factorize(it.weight, None, spectra({"linear": it.weight}, statistics, name)["linear"], 6)
        for name in ("pooled", "afm")
    )
    torch.testing.assert_close(pooled.B @ pooled.A, afm.B @ afm.A, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pooled.bias, afm.bias, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_groups_of_one_token_have_no_variance_inside_and_pooled_says_so(shape: tuple[int, int], side: str) -> None:
    it = layer(*shape, tokens=4, side=side)
    with pytest.warns(UserWarning, match="the input of linear is zero \\(for centred metrics: constant\\)"):
        spectrum = it.spectrum("pooled")
    assert not spectrum.energies.any()
    u, s, v = torch.linalg.svd(it.weight, full_matrices=False)
    factors = factorize(it.weight, None, spectrum, 6)
    torch.testing.assert_close(factors.B @ factors.A, (u[:, :6] * s[:6]) @ v[:6], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shape", "side"), SIDES)
def test_the_bias_of_pooled_keeps_the_mean_of_all_tokens(shape: tuple[int, int], side: str) -> None:
    it = layer(*shape, tokens=371, mean=3.0, side=side)
    factors = it.factors("pooled", 5)
    assert factors.bias is not None
    found = it.x.mean(0) @ (factors.B @ factors.A).T + factors.bias
    torch.testing.assert_close(found, it.y.mean(0), rtol=1e-10, atol=1e-10)


# --- the bias


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own", [False, True])
def test_a_centred_factorizer_keeps_the_mean_output_to_one_rounding_of_the_bias(own: bool, dtype: torch.dtype) -> None:
    it = layer(24, 64, mean=3.0)
    bias = torch.linspace(-1, 1, 24, dtype=dtype) if own else None
    weight = it.weight.to(dtype)
    factors = factorize(weight, bias, it.spectrum("afm"), 5)
    assert factors.bias is not None
    wanted = weight.double() @ it.x.mean(0) + (0 if bias is None else bias.double())
    exact = wanted - factors.B.double() @ factors.A.double() @ it.x.mean(0)
    one_rounding = 0.501 * torch.finfo(dtype).eps * exact.abs() + 1e-12
    assert bool(((factors.bias.double() - exact).abs() <= one_rounding).all())


@pytest.mark.parametrize("name", ["svd", "asvd", "awsvd", "whitened"])
def test_a_factorizer_that_is_not_centred_leaves_the_bias_alone(name: str) -> None:
    it, bias = layer(24, 64), torch.ones(24, dtype=torch.float64)
    assert it.factors(name, 5).bias is None
    assert torch.equal(it.factors(name, 5, bias).bias, bias)


# --- precision of storage


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_have_the_dtype_of_the_weight(dtype: torch.dtype) -> None:
    it = layer(96, 32)
    factors = factorize(it.weight.to(dtype), torch.ones(96, dtype=dtype), it.spectrum("afm"), 5)
    assert factors.bias is not None
    assert {factors.A.dtype, factors.B.dtype, factors.bias.dtype} == {dtype}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_second_factor_is_fitted_to_the_first_as_it_is_stored(shape: tuple[int, int]) -> None:
    it = layer(*shape)
    rounded = it.weight.bfloat16()
    factors = factorize(rounded, None, it.spectrum("svd"), 6)
    B = factors.B.double()
    fitted = torch.linalg.lstsq(B, rounded.double()).solution
    assert torch.equal(factors.A, fitted.bfloat16())


# --- cost


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_rank_decomposes_anything_again(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], name: str) -> None:
    it = layer(*shape)
    spectrum = it.spectrum(name)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a factorization is a slice and a refit")

    for decomposition in ("eigh", "eigvalsh", "svd", "svdvals", "qr", "lstsq"):
        monkeypatch.setattr(torch.linalg, decomposition, forbidden)
    for reflectors in ("geqrf", "ormqr"):
        monkeypatch.setattr(torch, reflectors, forbidden)
    for rank in it.ranks:
        assert factorize(it.weight, None, spectrum, rank).B.shape == (shape[0], rank)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_spectrum_holds_its_basis_and_nothing_else(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """A view into a larger matrix would keep that one alive for as long as the spectrum."""
    it = layer(*shape)
    basis = Layer(it.x, it.weight.to(dtype)).spectrum("afm").basis
    assert basis.dtype == torch.float32
    assert basis.untyped_storage().nbytes() == basis.numel() * 4


@pytest.mark.parametrize("shape", SHAPES)
def test_in_memory_and_from_a_file_the_factors_are_the_same_by_the_bit(tmp_path: Path, shape: tuple[int, int]) -> None:
    it = layer(*shape)
    weight = it.weight.float()
    spectrum = Layer(it.x, weight).spectrum("afm")
    save_spectra({"linear": spectrum}, tmp_path / "spectra.safetensors")
    one, two = (
        factorize(weight, None, each, 6)
        for each in (spectrum, load_spectra(tmp_path / "spectra.safetensors")["linear"])
    )
    assert torch.equal(one.A, two.A)
    assert torch.equal(one.B, two.B)


# --- files


def test_a_file_brings_back_energies_and_means_by_the_bit_and_bases_in_float32(tmp_path: Path) -> None:
    it = layer(24, 64)
    shared = BlockStatistics({}, {}, it.statistics.inputs, {"q": "linear", "k": "linear"})  # one mean for two linears
    before = spectra({"q": it.weight, "k": it.weight[:10]}, shared, "afm")
    save_spectra(before, tmp_path / "spectra.safetensors")
    after = load_spectra(tmp_path / "spectra.safetensors")
    assert before.keys() == after.keys()
    for name, spectrum in before.items():
        assert torch.equal(after[name].energies, spectrum.energies)
        assert torch.equal(after[name].basis, spectrum.basis.float())
        assert spectrum.mean is not None
        assert after[name].mean is not None
        assert torch.equal(after[name].mean, spectrum.mean)


@pytest.mark.parametrize(("name", "centred"), [("svd", False), ("whitened", False), ("afm", True)])
def test_energies_are_read_without_the_bases(tmp_path: Path, name: str, centred: bool) -> None:
    it = layer(24, 64)
    save_spectra({"linear": it.spectrum(name)}, tmp_path / "spectra.safetensors")
    energies, adds_bias = load_energies(tmp_path / "spectra.safetensors")
    assert torch.equal(energies["linear"], it.spectrum(name).energies)
    assert adds_bias == centred


def test_the_same_spectra_make_the_same_bytes(tmp_path: Path) -> None:
    for attempt in ("one", "two"):
        save_spectra({name: layer(24, 64).spectrum(name) for name in METHODS}, tmp_path / attempt)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with safe_open(tmp_path / "one", framework="pt") as file:
        assert file.get_tensor("svd/basis").dtype == torch.float32
