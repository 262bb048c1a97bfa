"""Truths of plans: what is foreseen is what the allocator counts, and a made-up device is not asked for more than it has."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.large import SHAPES, config_of
from mgaa.anchoring.anchoring import anchor_blocks
from mgaa.anchoring.fitting import Anchoring
from mgaa.blocks.hardware import Rates
from mgaa.checkpoints.meta_model import load_meta_model
from mgaa.decomposition.cuda_streams import STREAMS
from mgaa.factors import decompose_block, factorize
from mgaa.models.architectures import decoder_blocks, matrices_of
from mgaa.models.lowrank import Factors
from mgaa.plan import plan
from mgaa.plan.layout import Layout, layout_of
from mgaa.plan.room import peak_usage
from mgaa.plan.settings import Settings
from mgaa.statistics.calibration import Calibration, CalibrationSettings
from mgaa.statistics.gradients import stream_gradients
from tests.support.memory import peak_of

pytestmark = pytest.mark.slow

GIB = 2**30
SETTINGS = Settings(samples=256, length=2048, batch_size=8, groups=32, compression=0.2, stream=True, accelerator=True)


def layout(folder: Path, shape: str, blocks: int | None = None) -> Layout:
    config_of(SHAPES[shape], blocks or SHAPES[shape].blocks).save_pretrained(folder)
    return layout_of(load_meta_model(folder))


def device_bytes(made: Layout, settings: Settings) -> dict[str, int]:
    return {stage.name: stage.device for stage in plan(made, settings)}


def test_a_model_of_70_billion_parameters_takes_less_than_24_gib_of_a_device(tmp_path: Path) -> None:
    made = layout(tmp_path, "llama-2-70b")
    assert 68e9 < made.weights / 2 < 70e9
    settings = replace(SETTINGS, hidden="host", room=24 * GIB)
    assert peak_usage(plan(made, settings), settings, 0).device < 24 * GIB


@pytest.mark.parametrize("shape", SHAPES)
def test_a_smaller_device_has_fewer_decompositions_in_flight(tmp_path: Path, shape: str) -> None:
    made = layout(tmp_path, shape, 1)
    taken = [device_bytes(made, replace(SETTINGS, room=room))["decompose"] for room in (0, 8 * GIB, 16 * GIB, 80 * GIB)]
    assert taken == sorted(taken)
    one = device_bytes(made, replace(SETTINGS, accelerator=False))["decompose"]
    assert taken[0] == one  # a device where nothing fits has one, as a CPU
    assert one < taken[-1] < STREAMS * one
    assert all(found <= max(room, one) for found, room in zip(taken, (0, 8 * GIB, 16 * GIB, 80 * GIB), strict=True))


def test_the_floor_of_a_stage_is_its_work_over_the_rates(tmp_path: Path) -> None:
    made = layout(tmp_path, "tiny")
    rates = Rates(forward=1e12, double=1e11, eigen=1e9, read=1e9, write=1e9)
    slow = Rates(*(value / 3 for value in vars(rates).values()))
    for stage in plan(made, SETTINGS):
        assert stage.seconds(slow) == pytest.approx(3 * stage.seconds(rates))


def test_the_stages_take_what_is_foreseen(tmp_path: Path) -> None:
    """Within 20 %, of a model in memory, by the count of the allocator."""
    torch.manual_seed(0)
    made = layout(tmp_path, "tiny", 1)
    config = AutoConfig.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval().requires_grad_(False)
    settings = replace(SETTINGS, samples=16, length=64, groups=4, stream=False, accelerator=False)
    foreseen = {stage: device - made.weights for stage, device in device_bytes(made, settings).items()}
    gradients = replace(settings, gradients=True)
    foreseen["differentiate"] = device_bytes(made, gradients)["differentiate"] - made.weights
    tokens = torch.randint(0, config.vocab_size, (16, 64), generator=torch.Generator().manual_seed(0))
    measuring = CalibrationSettings(groups=4)
    calibrated = peak_of(lambda: Calibration(model, tokens, measuring).measure(0))
    assert foreseen["calibrate"] == pytest.approx(calibrated, rel=0.2)
    differentiated = peak_of(lambda: [index for index, _ in stream_gradients(model, tokens)])
    assert foreseen["differentiate"] == pytest.approx(differentiated, rel=0.2)
    statistics = Calibration(model, tokens, measuring).measure(0)
    held = sum(each.covariance.nbytes for each in statistics.inputs.values())
    block = decoder_blocks(model)[0]
    weights = {name: block.get_submodule(name).weight.detach() for name in statistics.shared}
    decomposed = held + peak_of(lambda: decompose_block(weights, statistics, "afm"))
    assert foreseen["decompose"] == pytest.approx(decomposed, rel=0.2)
    found = decompose_block(weights, statistics, "afm")
    bases = sum(spectrum.basis.nbytes + spectrum.energies.nbytes for spectrum in found.values())

    def factors() -> list[Factors]:
        ranks = {name: int(0.8 * weight.numel() / sum(weight.shape)) for name, weight in weights.items()}
        return [factorize(weight, None, found[name], ranks[name]) for name, weight in weights.items()]

    assert foreseen["factorize"] == pytest.approx(bases + peak_of(factors), rel=0.2)


@pytest.mark.parametrize(
    ("tokens", "blocks"),
    [((16, 64), 1), ((64, 256), 1), ((16, 64), 8)],
    ids=["few tokens", "many tokens", "many blocks"],
)
def test_anchoring_takes_what_is_foreseen(tokens: tuple[int, int], blocks: int, tmp_path: Path) -> None:
    """Within 20 %, where the sums are most of it, where the waiting tokens are, and where the compressed blocks are."""
    torch.manual_seed(0)
    made = layout(tmp_path, "tiny", blocks)
    config = AutoConfig.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval().requires_grad_(False)
    ids = torch.randint(0, config.vocab_size, tokens, generator=torch.Generator().manual_seed(0))
    samples, length = tokens
    settings = replace(SETTINGS, samples=samples, length=length, groups=4, stream=False, accelerator=False)
    foreseen = device_bytes(made, replace(settings, anchored="device"))["anchor"] - made.weights
    matrices = matrices_of(model)
    ranks = {matrix.name: int(0.8 * matrix.parameters / (matrix.m + matrix.n)) for matrix in matrices}
    found = anchor_blocks(model, ids, matrices, ranks, ("afm", {}), {}, CalibrationSettings(groups=4), Anchoring())
    assert foreseen == pytest.approx(peak_of(lambda: list(found)), rel=0.2)


def test_what_is_not_kept_or_tuned_is_computed_again(tmp_path: Path) -> None:
    made = layout(tmp_path, "tiny")
    plain = {stage.name: stage for stage in plan(made, replace(SETTINGS, anchored="device"))}["anchor"]
    tuned = {stage.name: stage for stage in plan(made, replace(SETTINGS, anchored="device", refinement=300))}["anchor"]
    outputs = {stage.name: stage for stage in plan(made, replace(SETTINGS, anchored="device", to_stream=False))}
    assert tuned.operations["forward"] > 10 * plain.operations["forward"]
    assert tuned.operations["double"] == plain.operations["double"]
    assert outputs["anchor"].device >= plain.device


def test_anchored_factors_take_the_place_of_slices(tmp_path: Path) -> None:
    made = layout(tmp_path, "tiny")
    slices, *others = (
        {stage.name: stage for stage in plan(made, replace(SETTINGS, anchored=place))}
        for place in (None, "device", "host", "disk")
    )
    device, host, disk = others
    assert "anchor" not in slices
    assert all("factorize" not in stages for stages in others)
    assert device["anchor"].device - host["anchor"].device > 6 * 256 * 2048 * made.hidden * 2
    assert host["anchor"].host - disk["anchor"].host == 2 * 256 * 2048 * made.hidden * 2
    assert device["anchor"].operations["forward"] < host["anchor"].operations["forward"]
