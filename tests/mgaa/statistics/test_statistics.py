"""Truths of the statistics: one pass equals all at once, however the sequences are cut, and a file brings back every bit."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from mgaa.errors import InputError, NumericalError
from mgaa.statistics.accumulate import Accumulator, CosineAccumulator
from mgaa.statistics.statistics import BlockStatistics, InputStatistics, load_cosines


def data(tokens: int, channels: int, *, mean: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(-2, 2, channels, dtype=torch.float64)
    return torch.randn(tokens, channels, dtype=torch.float64, generator=generator) * scales + mean


def accumulate(
    sequences: list[Tensor], groups: int = 4, weight: Tensor | None = None, minimum: float = 0.0
) -> InputStatistics:
    accumulator = Accumulator("layers.0.q", groups, len(sequences), weight, minimum)
    for index, sequence in enumerate(sequences):
        accumulator.update(index, sequence)
    return accumulator.finish()


def covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / len(x)


def close(a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """Equal to 1e-12 of the largest entry."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * scale * float(b.abs().max()) + 1e-300)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.sampled_from([0.0, 3.0, -1e3]))
def test_sequence_by_sequence_is_all_at_once(lengths: list[int], mean: float) -> None:
    x = data(sum(lengths), 6, mean=mean)
    found = accumulate(list(x.split(lengths)))
    assert found.count == len(x)
    close(found.mean, x.mean(0))
    close(found.mean_square, x.square().mean(0))
    close(found.mean_abs, x.abs().mean(0))
    torch.testing.assert_close(found.covariance, covariance(x), rtol=1e-9, atol=1e-11)
    assert torch.equal(found.covariance, found.covariance.T)


def test_a_mean_a_million_times_the_deviation_costs_no_digits() -> None:
    x = torch.randn(600, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 1e6
    expected = covariance(x - 1e6)
    torch.testing.assert_close(accumulate(list(x.split(50))).covariance, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_activations_of_any_precision_are_summed_in_float64(dtype: torch.dtype) -> None:
    x = data(90, 6, mean=0.5).to(dtype)
    found, exact = accumulate(list(x.split(30))), accumulate(list(x.double().split(30)))
    assert found.covariance.dtype == found.mean.dtype == found.group_means.dtype == torch.float64
    error = torch.linalg.norm(found.covariance - exact.covariance) / torch.linalg.norm(exact.covariance)
    assert float(error) < (1e-12 if dtype == torch.float32 else 2e-7)


def test_a_massive_token_costs_16_bit_activations_nothing_of_a_truncation() -> None:
    x = data(256, 24, mean=0.1)
    x[0] *= 1000.0
    x = x.bfloat16()
    found, exact = (accumulate(list(each.split(64))).covariance for each in (x, x.double()))
    basis = torch.linalg.eigh(found)[1][:, 12:]
    least = torch.linalg.eigvalsh(exact)[:12].sum()
    assert float((exact.trace() - torch.trace(basis.T @ exact @ basis)) / least) == pytest.approx(1.0, abs=1e-4)


def test_squares_that_overflow_float32_are_summed_all_the_same() -> None:
    x = torch.full((4, 3), 1e25, dtype=torch.bfloat16)
    x[0] = 0.0
    found, exact = accumulate([x]), accumulate([x.double()])
    assert torch.equal(found.covariance, exact.covariance)
    assert torch.equal(found.mean_square, exact.mean_square)


def test_the_output_side_holds_the_covariance_of_the_output_and_the_channels_of_the_input() -> None:
    x, weight = data(80, 12, mean=0.3), data(5, 12, seed=1)
    of_input, of_output = accumulate(list(x.split(20))), accumulate(list(x.split(20)), weight=weight)
    assert (of_input.side, of_output.side) == ("input", "output")
    close(of_output.covariance, weight @ of_input.covariance @ weight.T, scale=100)
    close(of_output.side_mean, weight @ of_input.mean, scale=100)
    for field in ("mean", "mean_square", "mean_abs"):
        assert torch.equal(getattr(of_input, field), getattr(of_output, field))
    assert (of_input.scale, of_input.centred_scale) == (of_output.scale, of_output.centred_scale)


def test_scales_are_mean_square_and_mean_variance_of_a_channel() -> None:
    x = data(80, 12, mean=0.3)
    found = accumulate(list(x.split(20)))
    assert found.scale == pytest.approx(float(x.square().mean()))
    assert found.centred_scale == pytest.approx(float(covariance(x).diagonal().mean()))


@pytest.mark.parametrize(
    ("sequences", "groups", "counts"), [(8, 4, [2] * 4), (3, 32, [1] * 3), (5, 2, [3, 2]), (6, 1, [6])]
)
def test_groups_are_of_consecutive_sequences(sequences: int, groups: int, counts: list[int]) -> None:
    x = data(sequences * 10, 6)
    found = accumulate(list(x.split(10)), groups)
    sizes = [10 * count for count in counts]
    assert found.group_counts.tolist() == sizes
    close(found.group_means, torch.stack([part.mean(0) for part in x.split(sizes)]))
    close(found.side_mean, x.mean(0))


def test_group_means_give_the_pooled_covariance() -> None:
    x = data(80, 6, mean=2.0)
    found = accumulate(list(x.split(5)), groups=4)
    pooled = torch.stack([covariance(part) for part in x.split(20)]).mean(0)
    moment = found.covariance + found.mean.outer(found.mean)
    torch.testing.assert_close(moment - found.group_means.T @ found.group_means / 4, pooled, rtol=1e-9, atol=1e-9)


def test_a_constant_input_has_no_covariance() -> None:
    found = accumulate([torch.full((7, 3), 2.5)] * 4)
    assert not found.covariance.any()
    assert found.mean.tolist() == [2.5] * 3


def test_a_single_token_has_a_mean_and_no_covariance() -> None:
    found = accumulate([torch.tensor([[1.0, -2.0]])])
    assert (found.count, found.mean.tolist(), found.mean_abs.tolist()) == (1, [1.0, -2.0], [1.0, 2.0])
    assert not found.covariance.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_activation_that_is_not_finite_names_layer_and_sequence(value: float) -> None:
    x = data(10, 3)
    x[4, 1] = x[5, 2] = value
    accumulator = Accumulator("layers.3.mlp.down_proj", 4, 8)
    accumulator.update(0, data(10, 3))
    with pytest.raises(
        NumericalError,
        match=r"input of layers\.3\.mlp\.down_proj has 2 non-finite entries in calibration sequence 5: .* bfloat16",
    ):
        accumulator.update(5, x)


# --- cosines


def test_the_cosine_is_the_mean_over_tokens_not_over_sequences() -> None:
    accumulator = CosineAccumulator("layers.0.ffn", 8)
    one = torch.tensor([[1.0, 0.0]])
    accumulator.update(0, one.repeat(3, 1), torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    accumulator.update(1, one, torch.tensor([[1.0, 1.0]]))
    assert accumulator.finish() == pytest.approx((1 + 0 - 1 + 0.5**0.5) / 4, abs=1e-7)


def test_a_token_that_is_zero_has_no_direction() -> None:
    accumulator = CosineAccumulator("layers.0.ffn", 8)
    accumulator.update(0, torch.zeros(2, 4), torch.ones(2, 4))
    assert accumulator.finish() == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_stream_that_is_not_finite_names_sublayer_and_sequence(value: float) -> None:
    accumulator = CosineAccumulator("layers.0.ffn", 8)
    with pytest.raises(
        NumericalError, match=r"residual stream of layers\.0\.ffn is not finite in calibration sequence 6"
    ):
        accumulator.update(6, torch.ones(2, 4), torch.full((2, 4), value))


# --- files


def block() -> BlockStatistics:
    x, weight = data(60, 6, mean=0.2), data(3, 6, seed=1)
    inputs = {"attn.q": accumulate(list(x.split(10))), "mlp.down": accumulate(list(x.split(10)), 4, weight)}
    shared = {"attn.q": "attn.q", "attn.k": "attn.q", "attn.v": "attn.q", "mlp.down": "mlp.down"}
    return BlockStatistics({"attention": 0.9, "ffn": 1 / 3}, {"attention": 0.1, "ffn": -0.2}, inputs, shared)


def test_a_file_brings_back_every_bit(tmp_path: Path) -> None:
    before = block()
    before.save(tmp_path / "block.safetensors")
    after = BlockStatistics.load(tmp_path / "block.safetensors")
    assert (after.cosines, after.branch_cosines, after.shared) == (before.cosines, before.branch_cosines, before.shared)
    for linear in before.shared:
        one, two = before.of(linear), after.of(linear)
        assert (one.side, one.count) == (two.side, two.count)
        for field in ("mean", "mean_square", "mean_abs", "covariance", "group_means", "group_counts"):
            assert torch.equal(getattr(one, field), getattr(two, field))


def test_linears_that_read_one_tensor_share_its_statistics(tmp_path: Path) -> None:
    block().save(tmp_path / "block.safetensors")
    after = BlockStatistics.load(tmp_path / "block.safetensors")
    assert after.of("attn.k") is after.of("attn.v") is after.inputs["attn.q"]


def test_a_covariance_is_stored_as_its_upper_triangle_in_float64(tmp_path: Path) -> None:
    block().save(tmp_path / "block.safetensors")
    with safe_open(tmp_path / "block.safetensors", framework="pt") as file:
        stored = {key: file.get_tensor(f"{key}/covariance") for key in ("attn.q", "mlp.down")}
    assert {key: tuple(tensor.shape) for key, tensor in stored.items()} == {"attn.q": (21,), "mlp.down": (6,)}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float64}


def test_the_same_statistics_make_the_same_bytes(tmp_path: Path) -> None:
    contents = set()
    for attempt in range(8):
        block().save(tmp_path / f"{attempt}.safetensors")
        contents.add((tmp_path / f"{attempt}.safetensors").read_bytes())
    assert len(contents) == 1


def test_cosines_are_read_without_the_rest(tmp_path: Path) -> None:
    block().save(tmp_path / "block.safetensors")
    assert load_cosines(tmp_path / "block.safetensors") == {"attention": (0.9, 0.1), "ffn": (1 / 3, -0.2)}


@pytest.mark.parametrize("value", [0.1, 1 / 3, 7e5, -3e-7])
def test_a_constant_input_has_no_variance_at_all(value: float) -> None:
    found = accumulate([torch.full((77, 3), value)] * 13)
    assert found.centred_scale == 0
    assert found.scale == pytest.approx(value**2, rel=1e-6)


# --- experts: fewer tokens than the minimum, sequences without any


def test_sequences_without_a_token_change_nothing() -> None:
    x = data(30, 6)
    found = accumulate([x[:0], x[:10], x[10:10], x[10:]], groups=4)
    close(found.covariance, covariance(x))
    close(found.mean, x.mean(0))
    assert found.group_counts.tolist() == [0, 10, 0, 20]


def test_no_token_at_all_is_an_error_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"layers\.0\.q received none of .* tokens.*data\.calibration\.samples"):
        accumulate([data(0, 6)])


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("tokens", [1, 5, 15, 20])
def test_below_the_minimum_the_covariance_is_shrunk_towards_an_isotropic_one(tokens: int, wide: bool) -> None:
    """`(1 - w) Cov + w tr(Cov)/n I` with w = 1 - tokens / 24, on the input; on the output it is the same matrix seen through W."""
    x = data(tokens, 6, mean=2.0)
    weight = data(3, 6, seed=1) if wide else None
    per_channel = 24 / (3 if wide else 6)
    found, whole = (accumulate([x[:2], x[2:]], weight=weight, minimum=minimum) for minimum in (per_channel, 0.0))
    kept = tokens / 24
    on_input = kept * covariance(x) + (1 - kept) * covariance(x).trace() / 6 * torch.eye(6, dtype=torch.float64)
    expected = on_input if weight is None else weight @ on_input @ weight.T
    torch.testing.assert_close(found.covariance, expected, rtol=1e-9, atol=1e-11)
    variance = whole.mean_square - whole.mean.square()
    mixed = whole.mean.square() + kept * variance + (1 - kept) * variance.mean()
    torch.testing.assert_close(found.mean_square, mixed, rtol=1e-9, atol=1e-11)
    absolute = kept * whole.mean_abs + (1 - kept) * whole.mean_abs.mean()
    torch.testing.assert_close(found.mean_abs, absolute, rtol=1e-9, atol=1e-11)
    for field in ("mean", "group_counts", "count"):
        assert torch.equal(torch.as_tensor(getattr(found, field)), torch.as_tensor(getattr(whole, field)))
    torch.testing.assert_close(found.side_mean, whole.side_mean, rtol=1e-9, atol=1e-11)


@given(st.integers(2, 40), st.integers(1, 8))
def test_what_is_pooled_over_groups_stays_a_covariance(tokens: int, groups: int) -> None:
    """The covariance less the scatter between the groups has no negative eigenvalue, however much it was shrunk."""
    x = data(tokens, 5)
    found = accumulate(list(x.tensor_split(8)), groups=groups, minimum=8.0)
    between = found.group_means - found.side_mean
    shares = found.group_counts / found.count
    within = found.covariance - (between.T * shares) @ between
    assert float(torch.linalg.eigvalsh(within).min()) >= -1e-12 * float(found.covariance.diagonal().max())
