"""The contract of every factorizer in `mgaa/factors` (a new file is tested without a new line), and the theorems of each.

Errors are measured on data, `||Y - (B A X + b)||` over all tokens, never taken from the spectrum that is under test.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from mgaa.errors import NumericalError, UsageError
from mgaa.factors import factorize, load_energies, load_spectra, save_spectra, spectra
from mgaa.linalg import Metric, Spectrum, decompose
from mgaa.lowrank import Factors
from mgaa.methods import available, method
from mgaa.statistics import Accumulator, BlockStatistics, InputStatistics

METHODS = available("factors")
SHAPES = [(24, 64), (48, 48), (96, 32)]  # wide, square, tall: m outputs, n inputs


@dataclass(frozen=True)
class Layer:
    """A linear with its calibration tokens and what calibration remembers of them."""

    x: Tensor
    weight: Tensor
    statistics: BlockStatistics

    @property
    def y(self) -> Tensor:
        return self.x @ self.weight.T

    def spectrum(self, name: str) -> Spectrum:
        return spectra({"linear": self.weight}, self.statistics, name)["linear"]

    def factors(self, name: str, rank: int, bias: Tensor | None = None) -> Factors:
        return factorize(self.weight, bias, self.spectrum(name), rank)

    def error(self, factors: Factors, bias: Tensor | None = None) -> float:
        """Mean over tokens of the squared error of the outputs."""
        found = self.x @ (factors.B.double() @ factors.A.double()).T
        found = found if factors.bias is None else found + factors.bias.double()
        wanted = self.y if bias is None else self.y + bias
        return float((wanted - found).square().sum() / len(self.x))

    @property
    def ranks(self) -> range:
        m, n = self.weight.shape
        return range(1, (m * n - 1) // (m + n) + 1)


def gather(x: Tensor, weight: Tensor | None = None) -> BlockStatistics:
    accumulator = Accumulator("linear", 4, 8, weight)
    for index, sequence in enumerate(x.split(len(x) // 8)):
        accumulator.update(index, sequence)
    return BlockStatistics({}, {}, {"linear": accumulator.finish()}, {"linear": "linear"})


def layer(
    m: int, n: int, *, condition: float = 1e2, mean: float = 0.5, tokens: int = 400, side: str = "input"
) -> Layer:
    """Tokens with log-spaced energies in random directions around a mean, and a random weight."""
    generator = torch.Generator().manual_seed(m * n)
    directions = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    scales = condition ** -(0.5 * torch.linspace(0, 1, n, dtype=torch.float64))
    x = torch.randn(tokens, n, dtype=torch.float64, generator=generator) * scales @ directions.T
    x = x + mean * torch.randn(n, dtype=torch.float64, generator=generator)
    weight = torch.randn(m, n, dtype=torch.float64, generator=generator)
    return Layer(x, weight, gather(x, weight if side == "output" else None))


def optimum(outputs: Tensor) -> Tensor:
    """Least possible mean squared error of the outputs at ranks 0, 1, ...: the dropped squared singular values."""
    energies = torch.linalg.svdvals(outputs).square() / len(outputs)
    return torch.cat([energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)])


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
    assert spectrum.basis.shape == (min(shape), it.ranks[-1])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_exact(shape: tuple[int, int], name: str) -> None:
    it, bias = layer(*shape), torch.linspace(-1, 1, shape[0], dtype=torch.float64)
    metric = method("factors", name, {})(it.statistics.of("linear"))
    factors = factorize(it.weight, bias, decompose(it.weight, metric), min(shape))
    torch.testing.assert_close(factors.B @ factors.A, it.weight, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(factors.bias, bias, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_squared_error_in_its_own_metric_is_the_sum_of_the_dropped_energies(
    shape: tuple[int, int], name: str
) -> None:
    it = layer(*shape)
    spectrum, metric = it.spectrum(name), method("factors", name, {})(it.statistics.of("linear"))
    M = metric.moment.diag() if metric.moment.ndim == 1 else metric.moment
    for rank in it.ranks:
        factors = it.factors(name, rank)
        missing = it.weight - factors.B @ factors.A
        error, energies = float((missing @ M * missing).sum()), spectrum.energies
        assert error == pytest.approx(float(energies[rank:].sum()), rel=1e-7, abs=1e-11 * float(energies.sum()))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_more_rank_never_costs_more_error_in_the_metric(shape: tuple[int, int], name: str) -> None:
    it = layer(*shape)
    metric = method("factors", name, {})(it.statistics.of("linear"))
    M = metric.moment.diag() if metric.moment.ndim == 1 else metric.moment
    missing = [it.weight - f.B @ f.A for f in (it.factors(name, rank) for rank in it.ranks)]
    errors = torch.stack([(gap @ M * gap).sum() for gap in missing])
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
    if one.bias is not None:
        torch.testing.assert_close(two.bias, one.bias, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_scale_of_the_input_does_not_change_the_factors(name: str, scale: float) -> None:
    it = layer(24, 64)
    scaled = Layer(it.x * scale, it.weight, gather(it.x * scale))
    one, two = it.factors(name, 7), scaled.factors(name, 7)
    torch.testing.assert_close(two.B @ two.A, one.B @ one.A, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fewer_tokens_than_channels_are_no_obstacle(shape: tuple[int, int], name: str) -> None:
    it = layer(*shape, tokens=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        factors = it.factors(name, it.ranks[-1])
    assert all(bool(part.isfinite().all()) for part in (factors.A, factors.B))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_dead_channels_are_no_obstacle(shape: tuple[int, int], name: str) -> None:
    it = layer(*shape)
    x = it.x * (torch.arange(shape[1]) % 3 > 0)
    factors = Layer(x, it.weight, gather(x)).factors(name, 7)
    assert all(bool(part.isfinite().all()) for part in (factors.A, factors.B))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_input_that_is_always_zero_gets_the_plain_svd(shape: tuple[int, int], name: str) -> None:
    it = layer(*shape)
    zero = Layer(it.x * 0, it.weight, gather(it.x * 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the warning itself is tested with the decomposition
        factors = zero.factors(name, 5)
    u, s, v = torch.linalg.svd(it.weight, full_matrices=False)
    torch.testing.assert_close(factors.B @ factors.A, (u[:, :5] * s[:5]) @ v[:5], rtol=1e-9, atol=1e-9)
    assert factors.bias is None or not factors.bias.any()


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


# --- the optimum on data, also from a file


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
    best = optimum(it.y if name == "whitened" else it.y - it.y.mean(0))
    for rank in it.ranks:
        assert it.error(factorize(it.weight, None, spectrum, rank)) <= float(best[rank]) * (1 + 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_whitened_is_never_worse_than_plain_svd(shape: tuple[int, int]) -> None:
    it = layer(*shape)
    for rank in it.ranks:
        assert it.error(it.factors("whitened", rank)) <= it.error(it.factors("svd", rank)) * (1 + 1e-9)


@pytest.mark.parametrize("mean", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_afm_with_its_bias_is_never_worse_than_whitened(shape: tuple[int, int], mean: float) -> None:
    it = layer(*shape, mean=mean)
    for rank in it.ranks:
        assert it.error(it.factors("afm", rank)) <= it.error(it.factors("whitened", rank)) * (1 + 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_afm_is_the_principal_component_analysis_of_the_outputs(shape: tuple[int, int]) -> None:
    it = layer(*shape)
    mean = it.y.mean(0)
    components = torch.linalg.svd(it.y - mean, full_matrices=False).Vh[:6]
    reconstructed = (it.y - mean) @ components.T @ components + mean
    factors = it.factors("afm", 6)
    assert factors.bias is not None
    torch.testing.assert_close(it.x @ (factors.B @ factors.A).T + factors.bias, reconstructed, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_whitened_is_the_cholesky_whitened_svd(shape: tuple[int, int]) -> None:
    it = layer(*shape)
    S = torch.linalg.cholesky(it.x.T @ it.x)
    u, s, v = torch.linalg.svd(it.weight @ S, full_matrices=False)
    expected = torch.linalg.solve_triangular(S, (u[:, :6] * s[:6]) @ v[:6], upper=False, left=False)
    factors = it.factors("whitened", 6)
    torch.testing.assert_close(factors.B @ factors.A, expected, rtol=1e-7, atol=1e-7)


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


@pytest.mark.parametrize("name", ["svd", "whitened"])
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


def test_factors_out_of_range_are_an_error_with_the_remedy() -> None:
    it = layer(24, 64)
    weight = torch.full((24, 64), 6e4, dtype=torch.float16)
    with pytest.raises(
        NumericalError, match=r"rank 3 leave the range of torch\.float16: set backbone\.dtype to bfloat16"
    ):
        factorize(weight, None, decompose(weight, svd_metric(it.statistics.of("linear"))), 3)


def svd_metric(statistics: InputStatistics) -> Metric:
    found: Metric = method("factors", "svd", {})(statistics)
    return found


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
