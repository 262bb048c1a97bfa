"""Experts that no calibration token reaches: an error by default, dense where that is asked for, and nothing else changes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import mgaa
from mgaa.budget import parameter_budget
from mgaa.errors import InputError, UsageError
from mgaa.models.architectures import decoder_blocks, matrices_of
from mgaa.models.fused import unfuse_
from mgaa.search.compress import compress_by_search_
from mgaa.statistics.calibration import Calibration, CalibrationSettings, merge, stream_statistics
from mgaa.statistics.shares import Share
from mgaa.statistics.statistics import BlockStatistics, load_unreached

Tiny = Callable[..., PreTrainedModel]
LONELY = [f"model.layers.1.mlp.experts.3.{name}_proj" for name in ("gate", "up", "down")]
WAYS: dict[str, Mapping[str, Any]] = {
    "dense inputs": {},
    "compressed inputs": {"inputs": "compressed"},
    "anchored": {"anchor": "stream", "factors": "whitened"},
    "least loss": mgaa.LOSS,
    "pooled": {"factors": "pooled", "groups": 4},
}


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 60, (8, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tiny: Tiny) -> PreTrainedModel:
    """A mixture whose last block never sends a token to its last expert."""
    return avoiding(tiny("gpt_oss"), 3)


def avoiding(model: PreTrainedModel, expert: int) -> PreTrainedModel:
    with torch.no_grad():
        decoder_blocks(model)[1].mlp.router.bias[expert] = -1e3
    return model


def test_it_is_an_error_by_default_that_names_both_ways_on(model: PreTrainedModel, tokens: Tensor) -> None:
    with pytest.raises(
        InputError, match=r"experts\.3\.gate_proj received none .*samples\), or .*statistics\.unreached=dense"
    ):
        mgaa.compress_(model, tokens)


@pytest.mark.parametrize("way", WAYS)
def test_their_matrices_stay_as_they_are_and_the_others_meet_the_budget(
    model: PreTrainedModel, tokens: Tensor, way: str
) -> None:
    before = {name: unfuse_(model).get_submodule(name).weight.clone() for name in LONELY}
    matrices = matrices_of(model)
    report = mgaa.compress_(model, tokens, compression=0.3, unreached="dense", **WAYS[way])
    assert [matrix.name for matrix in report.matrices if matrix.unreached] == LONELY
    assert all(matrix.rank is None and matrix.energy == 1.0 for matrix in report.matrices if matrix.unreached)
    for name, weight in before.items():
        layer = model.get_submodule(name)
        assert type(layer) is nn.Linear
        assert torch.equal(layer.weight, weight)
    budget = parameter_budget(matrices, 0.3)
    assert report.linear_parameters == sum(matrix.parameters for matrix in report.matrices) <= budget
    assert report.budget_left < max(matrix.m + matrix.n for matrix in matrices) * 2
    assert len([matrix for matrix in report.matrices if matrix.rank is not None]) > 10


def test_where_every_expert_is_reached_it_changes_nothing(tiny: Tiny, tokens: Tensor) -> None:
    one, two = tiny("gpt_oss"), tiny("gpt_oss")
    reports = mgaa.compress_(one, tokens), mgaa.compress_(two, tokens, unreached="dense")
    assert reports[0] == reports[1]
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_sweeps_and_searches_leave_them_dense_as_well(tiny: Tiny, tokens: Tensor) -> None:
    twins = [*mgaa.sweep(avoiding(tiny("gpt_oss"), 3), tokens, [0.2, 0.4], unreached="dense")]
    measuring = CalibrationSettings(groups=4, unreached="dense")
    found, _ = compress_by_search_(
        avoiding(tiny("gpt_oss"), 3), tokens, tokens[:2], compression=0.3, evaluations=2, initial=2, measuring=measuring
    )
    for report in (*(report for _, report in twins), found):
        assert {matrix.name for matrix in report.matrices if matrix.unreached} == {*LONELY}


def test_statistics_say_so_in_their_file_and_merge_to_the_same_bits(
    model: PreTrainedModel, tokens: Tensor, tmp_path: Path
) -> None:
    measuring = CalibrationSettings(groups=4, batch_size=2, unreached="dense")
    unfuse_(model)
    whole = [*stream_statistics(model, tokens, groups=4, batch_size=2, unreached="dense")][1]
    lines = [Calibration(model, tokens, measuring, share=Share(len(tokens), index, 2)) for index in range(2)]
    for line in lines:
        line.advance(0)
    (stack,) = (line._stack for line in lines[:1])
    merged = merge(stack, 1, [line.measure_sums(1) for line in lines], measuring, len(tokens))
    for name, statistics in (("whole", whole), ("merged", merged)):
        statistics.save(tmp_path / name)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "merged").read_bytes()
    again = BlockStatistics.load(tmp_path / "whole")
    local = tuple(name.removeprefix("model.layers.1.") for name in LONELY)
    assert again.unreached == whole.unreached == load_unreached(tmp_path / "whole") == local
    assert again.shared == whole.shared
    assert not set(local) & set(again.shared)


def test_a_compressed_model_with_dense_experts_is_loaded_as_it_was_saved(
    model: PreTrainedModel, tokens: Tensor, words: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    report = mgaa.compress_(model, tokens, compression=0.3, unreached="dense")
    mgaa.save(model, words, tmp_path / "model")
    again, _ = mgaa.load(tmp_path / "model", device="cpu")
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, model(tokens).logits)
    report.save(tmp_path / "allocation.json")
    entries = json.loads((tmp_path / "allocation.json").read_text())["matrices"]
    assert [name for name, entry in entries.items() if entry.get("unreached")] == LONELY


def test_a_compression_that_dense_experts_put_out_of_reach_says_so(model: PreTrainedModel, tokens: Tensor) -> None:
    with torch.no_grad():
        for block in decoder_blocks(model):
            block.mlp.router.bias[0] = -1e3
    with pytest.raises(UsageError, match=r"out of reach.*matrices stay dense, because no calibration token reached"):
        mgaa.compress_(model, tokens, compression=0.9, unreached="dense")


def test_another_word_is_refused(model: PreTrainedModel, tokens: Tensor) -> None:
    with pytest.raises(UsageError, match="unreached is 'skip', expected one of stop, dense"):
        mgaa.compress_(model, tokens, unreached="skip")
