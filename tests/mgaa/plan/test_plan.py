"""Truths of the plan: what it says of files is what is in them, and what it says of settings has the right sign."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from mgaa.blocks.hardware import Rates
from mgaa.factors import save_spectra, spectra
from mgaa.models.architectures import matrices_of
from mgaa.models.fused import unfuse_
from mgaa.plan import plan
from mgaa.plan.layout import Layout, layout_of
from mgaa.plan.room import Peaks, Room, peaks, remedies, short_of
from mgaa.plan.settings import Settings
from mgaa.statistics.calibration import Measuring, stream_statistics
from mgaa.statistics.gradients import differentiated
from tests.mgaa.conftest import FAMILIES

Tiny = Callable[..., PreTrainedModel]
SETTINGS = Settings(samples=6, length=12, batch_size=2, groups=3, compression=0.2, evaluation=((40, 10, 2),))


def llama(hidden: int, ffn: int, blocks: int, heads: int, shared: int) -> Layout:
    """A LLaMA of these shapes in bfloat16, without its weights."""
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=shared,
    )
    with torch.device("meta"):
        return layout_of(unfuse_(LlamaForCausalLM(config).bfloat16()))


def tensors(path: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(path).values())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "phi"])
def test_statistics_and_spectra_take_what_is_planned(tiny: Tiny, family: str, tmp_path: Path) -> None:
    """But for counts, cosines and means, which are a few numbers; in phi two branches turn out to read one tensor."""
    model = unfuse_(tiny(family))
    tokens = torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(0))
    layout = layout_of(model)
    stages = {stage.name: stage for stage in plan(layout, SETTINGS)}
    statistics = bases = few = 0
    for index, block in enumerate(stream_statistics(model, tokens, groups=3)):
        block.save(tmp_path / "statistics.safetensors")
        statistics += tensors(tmp_path / "statistics.safetensors")
        inside = {matrix.local: matrix for matrix in layout.blocks[index].matrices}
        weights = {local: model.get_submodule(matrix.name).weight.detach() for local, matrix in inside.items()}
        save_spectra(spectra(weights, block, "whitened"), tmp_path / "spectra.safetensors")
        bases += tensors(tmp_path / "spectra.safetensors")
        few += 8 * len(block.inputs) * (2 + SETTINGS.groups) + 64
    if family.startswith("falcon"):  # may read one norm in both branches
        assert statistics <= stages["calibrate"].disk + few
    else:
        assert abs(statistics - stages["calibrate"].disk) <= few
    assert bases == stages["decompose"].disk


def test_gradients_take_what_is_planned_and_wait_where_they_shall(tiny: Tiny, tmp_path: Path) -> None:
    model = unfuse_(tiny())
    tokens = torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(0))
    settings = replace(SETTINGS, gradients=True)
    stages = {stage.name: stage for stage in plan(layout_of(model), settings)}
    taken = bases = 0
    for index, block in differentiated(model, tokens, Measuring(groups=3)):
        block.save(tmp_path / "statistics.safetensors")
        taken += tensors(tmp_path / "statistics.safetensors")
        weights = {m.local: model.get_submodule(m.name).weight.detach() for m in matrices_of(model) if m.block == index}
        save_spectra(spectra(weights, block, "kronecker"), tmp_path / "spectra.safetensors")
        bases += tensors(tmp_path / "spectra.safetensors")
    assert bases == stages["decompose"].disk
    assert stages["differentiate"].disk == pytest.approx(taken, rel=0.01)
    assert stages["differentiate"].operations["forward"] > 3 * stages["calibrate"].operations["forward"]
    on_disk = {stage.name: stage for stage in plan(layout_of(model), replace(settings, states="disk"))}
    assert stages["differentiate"].device - on_disk["differentiate"].device == 4 * 6 * 12 * 32 * 4
    assert "differentiate" not in {stage.name for stage in plan(layout_of(model), SETTINGS)}


def test_the_model_is_the_sum_of_its_parts(tiny: Tiny) -> None:
    model = tiny("qwen2_moe")
    layout = layout_of(unfuse_(model))
    found = {id(tensor): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    assert layout.weights == sum(found.values())
    assert layout.largest == max(block.weights for block in layout.blocks)


def test_a_streamed_run_takes_one_block_and_the_tokens_where_they_wait() -> None:
    layout = llama(1024, 2816, 8, 16, 16)
    whole = {stage.name: stage for stage in plan(layout, SETTINGS)}
    streamed = {stage.name: stage for stage in plan(layout, replace(SETTINGS, stream=True))}
    saved = layout.weights - layout.rest - layout.largest
    assert whole["calibrate"].device - streamed["calibrate"].device == saved
    hidden = 6 * 12 * 1024 * 2
    on_host = {stage.name: stage for stage in plan(layout, replace(SETTINGS, stream=True, hidden="host"))}
    assert streamed["calibrate"].device - on_host["calibrate"].device == hidden
    assert on_host["calibrate"].host - streamed["calibrate"].host == hidden
    assert whole["calibrate"].operations == streamed["calibrate"].operations


def test_work_is_proportional_to_tokens_and_disk_to_models() -> None:
    layout = llama(1024, 2816, 8, 16, 16)
    one, two = plan(layout, SETTINGS), plan(layout, replace(SETTINGS, samples=12))
    assert two[1].operations["double"] == 2 * one[1].operations["double"]
    assert two[2].operations == one[2].operations
    three = plan(layout, replace(SETTINGS, models=3))
    assert [stage.disk for stage in three if stage.name in ("factorize", "assemble")] == [
        3 * stage.disk for stage in one if stage.name in ("factorize", "assemble")
    ]


def test_a_stage_takes_its_work_over_the_rates_and_its_bytes_over_the_disk() -> None:
    stage = plan(llama(1024, 2816, 1, 16, 16), SETTINGS)[1]
    slow, fast = Rates(1e9, 1e9, 1e9, 1e9, 1e9), Rates(2e9, 2e9, 2e9, 2e9, 2e9)
    assert stage.seconds(slow) == pytest.approx(2 * stage.seconds(fast))


def test_a_forward_pass_is_two_operations_for_each_parameter_and_token() -> None:
    """The published count for LLaMA-2-7B: 6.48 billion parameters in the linears of the blocks."""
    layout = llama(4096, 11008, 32, 32, 32)
    assert sum(block.parameters for block in layout.blocks) == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    settings = replace(SETTINGS, samples=256, length=2048)
    forward = plan(layout, settings)[1].operations["forward"]
    assert 1.0 < forward / (2 * 6.476e9 * 256 * 2048) < 1.1
    assert plan(layout, settings)[1].disk == pytest.approx(8.7e9, rel=0.03)  # 4 covariances a block, half of each


def test_what_does_not_fit_is_named_with_the_stage_and_the_gentlest_remedy() -> None:
    layout = llama(4096, 11008, 32, 32, 32)
    settings = replace(SETTINGS, samples=256, length=2048, accelerator=True)
    found = peaks(plan(layout, settings), settings, 10**9)
    assert short_of(found, Room(10**12, 10**12, 10**13), settings) == []
    room = Room(10 * 2**30, 64 * 2**30, 10**12)
    assert [text.split(" in ")[0] for text in short_of(found, room, settings)] == [
        f"{found.device / 1e9:.2f} GB on the device"
    ]
    steps = [(changed, other, peaks(plan(layout, other), other, 10**9)) for changed, other in remedies(settings)]
    assert next(changed for changed, other, less in steps if not short_of(less, room, other)) == {
        "backbone.stream": "always"
    }
    smaller = replace(room, device=int(0.8 * steps[0][2].device))
    assert next(changed for changed, other, less in steps if not short_of(less, smaller, other)) == {
        "backbone.stream": "always",
        "backbone.hidden": "host",
    }
    assert all(less.device <= more.device for (_, _, more), (_, _, less) in itertools.pairwise(steps))
    assert short_of(Peaks(0, 0, 2 * 10**12, ("", "")), room, settings) == ["2000.00 GB of disk, 1000.00 GB are free"]
