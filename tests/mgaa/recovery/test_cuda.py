"""On CUDA the same as on the CPU, in every precision."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from mgaa.recovery import Examples, Plan, recover_

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.03), ("float16", 0.03)])
def test_training_agrees(
    mixed: PreTrainedModel,
    examples: Examples,
    validation: Examples,
    plan: Plan,
    tmp_path: Path,
    precision: str,
    tolerance: float,
) -> None:
    here, there = mixed, copy.deepcopy(mixed).cuda()
    plan = replace(plan, dropout=0.0, steps=25, rate=3e-2, evaluate_every=10)
    one = recover_(here, examples, validation, plan, folder=tmp_path / "here")
    two = recover_(there, examples, validation, replace(plan, precision=precision), folder=tmp_path / "there")
    assert {parameter.device.type for parameter in there.parameters()} == {"cuda"}
    assert two.before == pytest.approx(one.before, rel=tolerance)
    assert two.after < 0.9 * two.before


def test_a_model_on_the_cpu_stays_there(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path
) -> None:
    recover_(mixed, examples, validation, plan, folder=tmp_path)
    assert {parameter.device.type for parameter in mixed.parameters()} == {"cpu"}


def test_auto_is_bfloat16_where_the_gpu_has_it(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path
) -> None:
    recover_(mixed.cuda(), examples, validation, replace(plan, precision="auto"), folder=tmp_path)
    expected = "bfloat16" if torch.cuda.is_bf16_supported(False) else "float16"
    assert f'"precision": "{expected}"' in (tmp_path / "job.json").read_text()


def test_diagonals_agree(
    mixed: PreTrainedModel, examples: Examples, validation: Examples, plan: Plan, tmp_path: Path
) -> None:
    here, there = mixed, copy.deepcopy(mixed).cuda()
    plan = replace(plan, method="diagonals", dropout=0.0, rate=3e-2)
    one = recover_(here, examples, validation, plan, folder=tmp_path / "here")
    two = recover_(there, examples, validation, plan, folder=tmp_path / "there")
    assert {parameter.device.type for parameter in there.parameters()} == {"cuda"}
    assert (two.before, two.after) == pytest.approx((one.before, one.after), rel=1e-3)
