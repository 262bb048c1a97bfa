"""Truths of the one decomposition: the optimum to 1e-6 on any spectrum, nested, deterministic, and singular where the data is.

References are singular values of `W S` with `S S^T = M`: those of a product are accurate to 1e-16 of the first, so their
squares serve as a reference down to energies 1e-20 times the first.
"""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mgaa.decomposition.linalg import Metric, Spectrum, decompose, fix_signs, symmetric_product
from mgaa.errors import NumericalError

WIDE, SQUARE, TALL, VERY_TALL = (24, 96), (48, 48), (96, 24), (512, 32)
SHAPES = [WIDE, SQUARE, TALL, VERY_TALL]


def random(m: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(m, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def root(n: int, condition: float, kind: str) -> Tensor:
    """`S`: random directions whose energies run from 1 to 1/condition evenly in the logarithm, or with four outliers."""
    directions = torch.linalg.qr(random(n, n, seed=1)).Q
    energies = torch.full((n,), 1 / condition, dtype=torch.float64)
    if kind == "log":
        energies = condition ** -torch.linspace(0, 1, n, dtype=torch.float64)
    energies[:4] = 1.0
    return directions * energies.sqrt()


def metric(S: Tensor, weight: Tensor | None = None) -> Metric:
    """`M = S S^T`, or `W M W^T` where a weight is given."""
    moment = S @ S.T
    scale = float(moment.trace() / len(moment))
    if weight is None:
        return Metric(moment, "input", scale)
    return Metric(weight @ moment @ weight.T, "output", scale)


def approximation(weight: Tensor, spectrum: Spectrum, rank: int) -> Tensor:
    U = spectrum.basis[:, :rank].double()
    return U @ (U.T @ weight)


def squared_error(weight: Tensor, approximated: Tensor, S: Tensor) -> float:
    return float(((weight - approximated) @ S).square().sum())


def break_even(m: int, n: int) -> int:
    return (m * n - 1) // (m + n)


# --- the optimum


@pytest.mark.parametrize("kind", ["log", "outliers"])
@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_rank_up_to_break_even_reaches_the_optimum(shape: tuple[int, int], condition: float, kind: str) -> None:
    weight, S = random(*shape), root(shape[1], condition, kind)
    optimum = torch.linalg.svdvals(weight @ S).square()
    spectrum = decompose(weight, metric(S))
    for rank in range(1, break_even(*shape) + 1):
        best = float(optimum[rank:].sum())
        assert squared_error(weight, approximation(weight, spectrum, rank), S) <= best * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["log", "outliers"])
@pytest.mark.parametrize("condition", [1e2, 1e6, 1e10])
@pytest.mark.parametrize("shape", [WIDE, SQUARE])
def test_the_moment_of_the_output_reaches_the_optimum_too(shape: tuple[int, int], condition: float, kind: str) -> None:
    weight, S = random(*shape), root(shape[1], condition, kind)
    optimum = torch.linalg.svdvals(weight @ S).square()
    spectrum = decompose(weight, metric(S, weight))
    for rank in range(1, break_even(*shape) + 1):
        best = float(optimum[rank:].sum())
        assert squared_error(weight, approximation(weight, spectrum, rank), S) <= best * (1 + 1e-6)


@pytest.mark.parametrize("kind", ["log", "outliers"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_squared_error_is_the_sum_of_the_dropped_energies(shape: tuple[int, int], kind: str) -> None:
    weight, S = random(*shape), root(shape[1], 1e6, kind)
    spectrum = decompose(weight, metric(S))
    total = float(spectrum.energies.sum())
    for rank in range(min(shape) + 1):
        error = squared_error(weight, approximation(weight, spectrum, rank), S)
        assert error == pytest.approx(float(spectrum.energies[rank:].sum()), abs=1e-11 * total)


@pytest.mark.parametrize("shape", SHAPES)
def test_energies_are_squared_singular_values_of_the_whitened_weight(shape: tuple[int, int]) -> None:
    weight, S = random(*shape), root(shape[1], 1e4, "log")
    expected = torch.linalg.svdvals(weight @ S).square()
    torch.testing.assert_close(decompose(weight, metric(S)).energies, expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_cholesky_whitened_svd(shape: tuple[int, int]) -> None:
    weight, S = random(*shape), root(shape[1], 1e3, "log")
    cholesky = torch.linalg.cholesky(S @ S.T)
    u, s, v = torch.linalg.svd(weight @ cholesky, full_matrices=False)
    for rank in (1, 5, break_even(*shape)):
        whitened = torch.linalg.solve_triangular(cholesky, (u[:, :rank] * s[:rank]) @ v[:rank], upper=False, left=False)
        found = approximation(weight, decompose(weight, metric(S)), rank)
        torch.testing.assert_close(found, whitened, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_identity_gives_the_plain_svd(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    found = approximation(weight, decompose(weight, Metric(torch.ones(shape[1], dtype=torch.float64), "input", 1.0)), 7)
    torch.testing.assert_close(found, (u[:, :7] * s[:7]) @ v[:7], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_full_rank_is_exact(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    found = approximation(weight, decompose(weight, metric(root(shape[1], 1e8, "log"))), min(shape))
    torch.testing.assert_close(found, weight, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_diagonal_is_the_same_as_its_matrix(shape: tuple[int, int]) -> None:
    weight, diagonal = random(*shape), torch.logspace(-4, 2, shape[1], dtype=torch.float64)
    scale = float(diagonal.mean())
    one = decompose(weight, Metric(diagonal, "input", scale))
    other = decompose(weight, Metric(diagonal.diag(), "input", scale))
    torch.testing.assert_close(one.energies, other.energies, rtol=1e-12, atol=1e-15 * float(one.energies[0]))
    torch.testing.assert_close(approximation(weight, one, 5), approximation(weight, other, 5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [WIDE, SQUARE])
def test_both_sides_give_one_spectrum(shape: tuple[int, int]) -> None:
    weight, S = random(*shape), root(shape[1], 1e4, "log")
    of_input, of_output = decompose(weight, metric(S)), decompose(weight, metric(S, weight))
    torch.testing.assert_close(of_input.energies, of_output.energies, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        approximation(weight, of_input, 9), approximation(weight, of_output, 9), rtol=1e-7, atol=1e-7
    )


# --- where the data says nothing


@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_that_span_five_directions_are_exact_from_rank_five_on(shape: tuple[int, int]) -> None:
    weight, S = random(*shape), root(shape[1], 1e2, "log")[:, :5]
    spectrum = decompose(weight, metric(S))
    total = float(spectrum.energies.sum())
    for rank in range(5, break_even(*shape) + 1):
        assert squared_error(weight, approximation(weight, spectrum, rank), S) <= 1e-24 * total


@pytest.mark.parametrize("shape", SHAPES)
def test_directions_that_no_data_reaches_are_those_that_keep_most_of_the_weight(shape: tuple[int, int]) -> None:
    weight, S = random(*shape), root(shape[1], 1e2, "log")[:, :5]
    reached = torch.linalg.svd(weight @ S, full_matrices=False).U
    rest = weight - reached @ (reached.T @ weight)
    best = torch.linalg.svdvals(rest)[3:].square().sum()
    found = weight - approximation(weight, decompose(weight, metric(S)), 8)
    assert float(found.square().sum()) == pytest.approx(float(best), rel=1e-3)


@pytest.mark.parametrize("side", ["input", "output"])
def test_an_input_that_is_always_zero_warns_and_gets_the_plain_svd(side: str) -> None:
    weight, S = random(*WIDE), torch.zeros(96, 96, dtype=torch.float64)
    with pytest.warns(UserWarning, match=r"the input of mlp\.up is zero .* it gets the plain SVD"):
        spectrum = decompose(weight, metric(S, weight if side == "output" else None), name="mlp.up")
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    assert not spectrum.energies.any()
    torch.testing.assert_close(approximation(weight, spectrum, 6), (u[:, :6] * s[:6]) @ v[:6], rtol=1e-9, atol=1e-9)


def test_a_singular_input_is_nothing_to_warn_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decompose(random(*SQUARE), metric(root(48, 1e2, "log")[:, :1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_dead_channels_change_nothing_for_the_living(shape: tuple[int, int]) -> None:
    m, n = shape
    weight, S = random(m, n), root(n, 1e3, "log")
    dead = torch.arange(n) % 3 == 0
    S[dead] = 0.0
    rank = 5
    with_dead = squared_error(weight, approximation(weight, decompose(weight, metric(S)), rank), S)
    living, rest = weight[:, ~dead], S[~dead]
    without = squared_error(living, approximation(living, decompose(living, metric(rest)), rank), rest)
    assert with_dead == pytest.approx(without, rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_with_equal_columns_is_exact_at_its_own_rank(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    weight[:, 1::2] = weight[:, ::2]
    own = min(shape[0], shape[1] // 2)
    found = approximation(weight, decompose(weight, metric(root(shape[1], 1e2, "log"))), own)
    torch.testing.assert_close(found, weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_rounding_makes_no_energy_negative(shape: tuple[int, int]) -> None:
    weight = random(*shape)[:, :1].expand(shape) * torch.arange(
        1, shape[1] + 1
    )  # one direction, so the other energies are zero
    energies = decompose(weight, metric(root(shape[1], 1e10, "log"))).energies
    assert bool((energies >= 0).all())
    assert float(energies[1:].sum()) <= 1e-12 * float(energies[0])


@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_a_weight_of_zeros_stays_zero(shape: tuple[int, int]) -> None:
    spectrum = decompose(torch.zeros(shape), metric(root(shape[1], 1e2, "log")))
    assert not spectrum.energies.any()
    assert not approximation(torch.zeros(shape, dtype=torch.float64), spectrum, 3).any()


# --- invariances


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1e2, 1e4])
@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_the_scale_of_the_input_does_not_matter(shape: tuple[int, int], scale: float) -> None:
    weight, S = random(*shape), root(shape[1], 1e6, "log")
    one, scaled = decompose(weight, metric(S)), decompose(weight, metric(S * scale))
    torch.testing.assert_close(scaled.energies, one.energies * scale**2, rtol=1e-8, atol=0)
    torch.testing.assert_close(approximation(weight, scaled, 9), approximation(weight, one, 9), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_smaller_rank_is_a_prefix(shape: tuple[int, int]) -> None:
    weight, given = random(*shape), metric(root(shape[1], 1e4, "log"))
    smaller, whole = decompose(weight, given, rank=6).basis, decompose(weight, given).basis
    torch.testing.assert_close(smaller, whole[:, :6], rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_twice_the_same_is_bit_equal(shape: tuple[int, int]) -> None:
    weight, given = random(*shape), metric(root(shape[1], 1e4, "log"))
    one, two = decompose(weight, given), decompose(weight, given)
    assert torch.equal(one.basis, two.basis)
    assert torch.equal(one.energies, two.energies)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_entry_of_largest_magnitude_of_each_direction_is_positive(shape: tuple[int, int]) -> None:
    basis = decompose(random(*shape), metric(root(shape[1], 1e4, "log"))).basis
    assert bool((basis.max(0).values == basis.abs().max(0).values).all())


def test_of_two_largest_entries_the_first_is_positive() -> None:
    assert fix_signs(torch.tensor([[-1.0, 1.0], [1.0, -1.0]])).tolist() == [[1.0, 1.0], [-1.0, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_weight_of_any_precision_is_decomposed_in_float64_and_its_basis_kept_in_float32(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight, given = random(*shape).to(dtype), metric(root(shape[1], 1e6, "log"))
    spectrum, exact = decompose(weight, given), decompose(weight.double(), given)
    assert (spectrum.basis.dtype, exact.basis.dtype) == (torch.float32, torch.float64)
    assert torch.equal(spectrum.energies, exact.energies)
    assert torch.equal(spectrum.basis, exact.basis.float())


@pytest.mark.parametrize("shape", [TALL, VERY_TALL, (49, 48)])
def test_the_basis_of_a_tall_weight_holds_its_left_singular_vectors(shape: tuple[int, int]) -> None:
    weight, S = random(*shape), root(shape[1], 1e3, "log")
    U = torch.linalg.svd(weight @ S, full_matrices=False).U
    basis = decompose(weight, metric(S)).basis
    assert basis.shape == shape
    torch.testing.assert_close(basis, fix_signs(U), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rank", [1, 5, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_basis_is_orthonormal_also_where_weight_and_inputs_are_singular(
    shape: tuple[int, int], rank: int | None
) -> None:
    weight = random(*shape)
    weight[:, 1::2] = weight[:, ::2]
    basis = decompose(weight, metric(root(shape[1], 1e10, "log")[:, :5]), rank=rank).basis
    assert basis.shape == (shape[0], rank or min(shape))
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 37])
def test_a_symmetric_product_has_the_upper_triangle_of_the_product(size: int) -> None:
    left = random(size, 11)
    torch.testing.assert_close(symmetric_product(left, left).triu(), (left @ left.T).triu(), rtol=1e-13, atol=1e-13)


# --- damage


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["weight", "moment"])
@pytest.mark.parametrize(
    ("shape", "side"), [(WIDE, "input"), (WIDE, "output"), (SQUARE, "input"), (SQUARE, "output"), (TALL, "input")]
)
def test_an_entry_that_is_not_finite_is_an_error_with_the_name(
    shape: tuple[int, int], side: str, where: str, value: float
) -> None:
    weight, S = random(*shape), root(shape[1], 1e2, "log")
    given = metric(S, weight if side == "output" else None)
    (weight if where == "weight" else given.moment)[3, 2] = value
    with pytest.raises(
        NumericalError, match=r"W M W\^T of mlp\.up, or .* has non-finite entries: .* check the weights"
    ):
        decompose(weight, given, name="mlp.up")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["scale", "mean"])
@pytest.mark.parametrize("shape", [WIDE, TALL])
def test_a_scale_or_a_mean_that_is_not_finite_is_no_zero_input(
    shape: tuple[int, int], field: str, value: float
) -> None:
    given = metric(root(shape[1], 1e2, "log"))
    damaged = replace(given, scale=value) if field == "scale" else replace(given, mean=torch.full((shape[1],), value))
    with pytest.raises(NumericalError, match=r"W M W\^T of mlp\.up, or the mean of its input, has non-finite entries"):
        decompose(random(*shape), damaged, name="mlp.up")
