"""Truths of the waiting hidden states: the same bits from the device, the host and the disk, and from a run that was killed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.blocks import resume
from mgaa.blocks.hidden_states import HiddenStates, Place
from mgaa.models.fused import unfuse_
from mgaa.statistics.calibration import Calibration, CalibrationSettings, stream_statistics
from tests.mgaa.statistics.test_calibration import same

Tiny = Callable[..., PreTrainedModel]
CPU = torch.device("cpu")


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (6, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_wherever_they_wait_the_statistics_are_the_same(
    tiny: Tiny, tokens: Tensor, tmp_path: Path, place: Place
) -> None:
    model = unfuse_(tiny("gemma2", num_hidden_layers=3))
    calibration = Calibration(model, tokens, CalibrationSettings(batch_size=2), place=place, folder=tmp_path)
    for index, whole in enumerate(stream_statistics(model, tokens)):
        assert same(calibration.measure(index), whole)
        calibration.commit()
    assert index == 2
    assert [*tmp_path.rglob("*.safetensors")]
    calibration.close()
    assert not [*tmp_path.rglob("*.safetensors")]


@pytest.mark.parametrize("place", ["device", "disk"])
@pytest.mark.parametrize("passed", [0, 1, 2])
def test_an_interrupted_calibration_goes_on_at_its_block(
    tiny: Tiny, tokens: Tensor, tmp_path: Path, place: Place, passed: int
) -> None:
    """The block at hand may be left in the middle, with some of its micro-batches written."""
    model = unfuse_(tiny(num_hidden_layers=3))
    first = Calibration(model, tokens, CalibrationSettings(batch_size=2), place=place, folder=tmp_path)
    for index in range(passed):
        first.measure(index)
        first.commit()
    first.measure(passed)  # and not settled
    del first
    second = Calibration(model, tokens, CalibrationSettings(batch_size=2), place=place, folder=tmp_path)
    assert second.passed == passed
    for index, whole in enumerate(stream_statistics(model, tokens)):
        if index >= passed:
            assert same(second.measure(index), whole)
            second.commit()


def test_what_was_written_before_the_machine_was_started_anew_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot_id").write_text("this start")
    monkeypatch.setattr(resume, "_BOOT", tmp_path / "boot_id")
    states = HiddenStates(1, CPU, folder=tmp_path / "kept")
    states.put(0, torch.ones(1, 2, 3))
    states.commit()
    assert HiddenStates(1, CPU, folder=tmp_path / "kept").resumed
    (tmp_path / "boot_id").write_text("the next start")
    assert not HiddenStates(1, CPU, folder=tmp_path / "kept").resumed


def test_states_from_files_lie_where_torch_would_have_put_them(tmp_path: Path) -> None:
    """At a multiple of 64 bytes: kernels round differently elsewhere."""
    states, given = HiddenStates(1, CPU, place="disk", folder=tmp_path / "kept"), torch.randn(2, 5, 7)
    states.put(0, given)
    states.commit()
    assert torch.equal(states.get(0), given)
    assert states.get(0).data_ptr() % 64 == 0


def test_a_micro_batch_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    states = HiddenStates(1, CPU, folder=tmp_path / "kept")
    (tmp_path / "kept" / "hidden-0001-00000.safetensors").mkdir()
    states.put(0, torch.ones(1, 2, 3))
    with pytest.raises(Exception, match=r"(?i)is a directory"):
        states.commit()
