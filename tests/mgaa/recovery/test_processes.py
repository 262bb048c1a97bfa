"""Two processes train as one does, and what they raise arrives."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from mgaa.errors import InputError, NumericalError, ResourceError, UsageError
from mgaa.recovery import Examples, Plan, processes, recover_
from mgaa.recovery.job import job_of

pytestmark = pytest.mark.slow


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Instead of starting processes: work in this one, or end with a code."""

    def install(code: int) -> None:
        def run(job: processes.Job, device: torch.device) -> int:
            if code:
                return code
            try:
                processes.work(job.folder, device.type)
            except Exception:
                return 1
            return 0

        monkeypatch.setattr(processes, "_run", run)

    return install


def test_two_processes_train_as_one(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path
) -> None:
    plan, twin = replace(plan, dropout=0.0), copy.deepcopy(mixed)
    one = recover_(mixed, examples, validation, plan, folder=tmp_path / "one")
    two = recover_(twin, examples, validation, replace(plan, processes=2), folder=tmp_path / "two")
    assert [point.training for point in two.points[1:]] == pytest.approx([x.training for x in one.points[1:]], rel=1e-5)
    assert two.after == pytest.approx(one.after, rel=1e-5)
    torch.testing.assert_close(twin.state_dict(), mixed.state_dict(), rtol=1e-3, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "adapters.safetensors",
        "curve.json",
        "job.json",
        "job.lock",
    ]


def test_a_process_trains_diagonals_to_the_same_bits(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    here: Callable[[int], None],
) -> None:
    here(0)
    plan, twin = replace(plan, method="diagonals"), copy.deepcopy(mixed)
    curve = recover_(mixed, examples, validation, plan, folder=tmp_path / "here")
    job = job_of(twin, examples, validation, plan, tmp_path / "there")
    job.open()
    processes.launch(twin, examples, validation, job)
    assert recover_(twin, examples, validation, plan, folder=tmp_path / "there") == curve
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), mixed.state_dict().values(), strict=True))


def test_what_a_process_raises_is_raised_by_the_caller(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    here: Callable[[int], None],
) -> None:
    here(0)
    monkeypatch.setattr("mgaa.recovery.training._sum", lambda logits, _: logits.sum() * float("nan"))
    job = job_of(mixed, examples, validation, plan, tmp_path)
    job.open()
    with pytest.raises(NumericalError, match="The validation loss is nan at step 0"):
        processes.launch(mixed, examples, validation, job)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["error.json", "job.json", "job.lock"]


def test_a_process_that_dies_without_a_word_is_reported(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    here: Callable[[int], None],
) -> None:
    here(9)
    with pytest.raises(ResourceError, match=r"ended with code 9, see their messages above; make room .* start again"):
        recover_(mixed, examples, validation, replace(plan, processes=2), folder=tmp_path)


def test_a_model_that_cannot_be_stored_is_refused(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    here: Callable[[int], None],
) -> None:
    here(0)
    job = replace(job_of(mixed, examples, validation, plan, tmp_path), model="another")
    job.open()
    with pytest.raises(InputError, match=r"does not survive being saved and loaded.* set recovery.processes to 1"):
        processes.launch(mixed, examples, validation, job)


def test_a_disk_without_room_is_reported(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path
) -> None:
    (tmp_path / ".handover").write_text("in the way")
    job = job_of(mixed, examples, validation, plan, tmp_path)
    with pytest.raises(ResourceError, match=r"the model cannot be written to .*model .*: make room"):
        processes.launch(mixed, examples, validation, job)


def test_every_process_needs_a_gpu_of_its_own(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(mixed), "device", property(lambda _: torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    job = job_of(mixed, examples, validation, replace(plan, processes=2), tmp_path)
    with pytest.raises(UsageError, match="processes is 2, but there are 1 GPUs: each process needs one; lower it"):
        processes.launch(mixed, examples, validation, job)
