"""The folder of a job says whose it is, and refuses what is damaged or strange."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from mgaa.errors import InputError, ResourceError
from mgaa.recovery import Curve, Examples, Plan, Point
from mgaa.recovery.job import Job, job_of, model_digest, read_job, seal, write_tensors

CURVE = Curve((Point(0, None, 2.0, 0.0), Point(1, 2.0, 1.0, 0.1)))


@pytest.fixture
def job(mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path) -> Job:
    return job_of(mixed, examples, validation, plan, tmp_path / "job")


@pytest.fixture
def ended(job: Job) -> Job:
    """With a result: one adapter of step 1."""
    job.claim()
    write_tensors(job.at(1) / "adapters.safetensors", {"a": torch.ones(2)})
    seal(job.at(1))
    job.finish(CURVE)
    return job


def test_a_job_is_read_back_as_it_was_opened(job: Job) -> None:
    job.claim()
    assert read_job(job.folder) == job
    job.claim()


def test_the_result_is_read_back(ended: Job) -> None:
    result = ended.result()
    assert result is not None
    assert result[0] == CURVE
    assert torch.equal(result[1]["a"], torch.ones(2))
    assert not list(ended.folder.glob("checkpoint-*"))


def test_the_digest_sees_names_types_shapes_and_bytes(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny()
    before = model_digest(model)
    assert model_digest(tiny()) == before
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    assert len({before, model_digest(model), model_digest(tiny().bfloat16()), model_digest(tiny("qwen2"))}) == 4


def test_checkpoints_without_a_job_are_refused(job: Job) -> None:
    job.at(3).mkdir(parents=True)
    with pytest.raises(InputError, match=r"holds checkpoint-3 but no job.json: give a new folder"):
        job.claim()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "job.json cannot be read .*remove .* and start again"),
        ("[]", "job.json holds a list, expected an object"),
        ('{"plan": {}}', "job.json is not a job of this mgaa .*'model'"),
        ('{"plan": {"speed": 1}}', "job.json is not a job of this mgaa .*speed"),
    ],
)
def test_a_job_that_cannot_be_read_is_refused(job: Job, text: str, message: str) -> None:
    job.folder.mkdir()
    (job.folder / "job.json").write_text(text)
    with pytest.raises(InputError, match=message):
        job.claim()


def test_a_result_that_was_altered_is_refused(ended: Job) -> None:
    write_tensors(ended.folder / "adapters.safetensors", {})
    with pytest.raises(
        InputError, match=r"adapters.safetensors is not the file that curve.json next to it names: remove"
    ):
        ended.result()


def test_a_damaged_best_checkpoint_is_refused(job: Job) -> None:
    job.claim()
    write_tensors(job.at(1) / "adapters.safetensors", {})
    with pytest.raises(InputError, match=r"checkpoint-1, the best checkpoint, is damaged: remove .* and start again"):
        job.finish(CURVE)


def test_a_folder_that_cannot_be_written_is_named(job: Job) -> None:
    job.folder.write_text("a file")
    with pytest.raises(ResourceError, match=r"job.json cannot be written .* make room or give another folder"):
        job.claim()
    with pytest.raises(ResourceError, match="x cannot be written"):
        write_tensors(job.folder / "x", {})
