"""On CUDA the same as on the CPU: the numbers agree closely, and nothing needs to be on both."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import mgaa
from mgaa.decomposition.cuda_streams import in_flight
from mgaa.decomposition.linalg import Metric, Spectrum, decompose
from mgaa.errors import NumericalError
from mgaa.factors import factorize, load_spectra, save_spectra, spectra
from mgaa.methods import available
from mgaa.models.architectures import decoder_blocks, matrices_of
from mgaa.models.fused import unfuse_
from mgaa.statistics.accumulate import Accumulator
from mgaa.statistics.calibration import stream_statistics
from mgaa.statistics.statistics import BlockStatistics
from tests.mgaa.conftest import FAMILIES

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

Tiny = Callable[..., PreTrainedModel]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (8, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_agree(tiny: Tiny, tokens: Tensor, family: str) -> None:
    model = unfuse_(tiny(family).double())
    here = list(stream_statistics(model, tokens))
    there = list(stream_statistics(copy.deepcopy(model).cuda(), tokens))
    for one, two in zip(here, there, strict=True):
        assert one.cosines == pytest.approx(two.cosines, abs=1e-6)
        for linear in one.shared:
            assert two.of(linear).covariance.device.type == "cuda"
            torch.testing.assert_close(two.of(linear).covariance.cpu(), one.of(linear).covariance, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(two.of(linear).mean.cpu(), one.of(linear).mean, rtol=1e-9, atol=1e-9)


def test_the_output_side_of_16_bits_is_added_up_in_float32() -> None:
    """Rounded to 16 bits on the way, the entries would differ by 4e-3."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator).bfloat16() for shape in ((64, 512), (24, 512)))
    found = []
    for device in ("cpu", "cuda"):
        accumulator = Accumulator("down", 1, 1, weight.to(device))
        accumulator.update(0, x.to(device))
        found.append(accumulator.finish().covariance.cpu())
    exact = torch.cov((x.double() @ weight.double().T).T, correction=0)
    for covariance in found:
        torch.testing.assert_close(covariance, exact, rtol=1e-5, atol=1e-5 * float(exact.max()))


@pytest.mark.parametrize("factorizer", available("factors"))
def test_the_compressed_model_agrees(tiny: Tiny, tokens: Tensor, factorizer: str) -> None:
    here = tiny().double()
    there = copy.deepcopy(here).cuda()
    reports = [mgaa.compress_(model, tokens, compression=0.3, factors=factorizer) for model in (here, there)]
    assert [x.rank for x in reports[0].matrices] == [x.rank for x in reports[1].matrices]
    assert {parameter.device.type for parameter in there.parameters()} == {"cuda"}
    with torch.no_grad():
        torch.testing.assert_close(there(tokens.cuda()).logits.cpu(), here(tokens).logits, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_a_model_compressed_by_lorap_agrees(tiny: Tiny, tokens: Tensor, family: str) -> None:
    here = tiny(family).double()
    there = copy.deepcopy(here).cuda()
    reports = [mgaa.compress_(model, tokens, compression=0.3, **mgaa.LORAP) for model in (here, there)]
    assert [(x.rank, x.width) for x in reports[0].matrices] == [(x.rank, x.width) for x in reports[1].matrices]
    with torch.no_grad():
        torch.testing.assert_close(there(tokens.cuda()).logits.cpu(), here(tokens).logits, rtol=1e-7, atol=1e-7)


def test_spectra_of_one_device_serve_factors_on_the_other(tiny: Tiny, tokens: Tensor, tmp_path: Path) -> None:
    model = tiny().double()
    moved = copy.deepcopy(model).cuda()
    path = tmp_path / "block.safetensors"
    next(iter(stream_statistics(moved, tokens))).save(path)
    locals_ = [matrix.local for matrix in matrices_of(model) if matrix.block == 0]
    weights = {name: decoder_blocks(moved)[0].get_submodule(name).weight.detach() for name in locals_}
    save_spectra(spectra(weights, BlockStatistics.load(path, "cuda"), "afm"), path)
    for name, weight in weights.items():
        one = factorize(weight.cpu(), None, load_spectra(path)[name], 5)
        two = factorize(weight, None, load_spectra(path, "cuda")[name], 5)
        torch.testing.assert_close((two.B @ two.A).cpu(), one.B @ one.A, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shapes", [[(64, 64)] * 9, [(96, 24), (24, 96), (48, 48)] * 3])
def test_decompositions_in_flight_are_those_one_after_the_other_by_the_bit(shapes: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {str(index): torch.randn(*shape, generator=generator).cuda() for index, shape in enumerate(shapes)}

    def compute(name: str) -> Spectrum:
        weight = weights[name]
        return decompose(weight, Metric(torch.ones(weight.shape[1]).cuda(), "input", 1.0))

    together = in_flight(compute, dict.fromkeys(weights, 0), {weight.device for weight in weights.values()})
    assert list(together) == list(weights)
    for name, spectrum in together.items():
        assert torch.equal(spectrum.energies, compute(name).energies)
        assert torch.equal(spectrum.basis, compute(name).basis)


def test_an_error_in_flight_names_its_matrix() -> None:
    weights = {name: torch.ones(8, 8).cuda() for name in ("q", "k")}
    weights["k"][3, 2] = float("nan")

    def compute(name: str) -> Spectrum:
        return decompose(weights[name], Metric(torch.ones(8).cuda(), "input", 1.0), name=name)

    with pytest.raises(NumericalError, match=r"W M W\^T of k, or"):
        in_flight(compute, dict.fromkeys(weights, 0), {weights["q"].device})
