"""Truths of the sums: nothing is computed twice, and the panels of a scatter are the whole of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.models.fused import unfuse_
from mgaa.statistics.accumulate import Accumulator
from mgaa.statistics.calibration import stream_statistics

Tiny = Callable[..., PreTrainedModel]


def test_branches_side_by_side_that_read_one_norm_share_its_moment(tiny: Tiny) -> None:
    tokens = torch.randint(0, 60, (4, 12), generator=torch.Generator().manual_seed(0))
    statistics = next(stream_statistics(unfuse_(tiny("phi")), tokens))
    assert statistics.shared["mlp.fc1"] == "self_attn.q_proj"
    assert set(statistics.inputs) == {"self_attn.q_proj", "self_attn.dense", "mlp.fc2"}
    apart = next(
        stream_statistics(unfuse_(tiny("gpt_neox")), tokens)
    )  # side by side as well, each behind a norm of its own
    assert apart.shared["mlp.dense_h_to_4h"] == "mlp.dense_h_to_4h"


@pytest.mark.parametrize("width", [5, 130, 700])
def test_the_panels_of_a_wide_scatter_are_the_whole_of_it(width: int) -> None:
    x = torch.randn(90, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    accumulator = Accumulator("x", 1, 3)
    for index, sequence in enumerate(x.split(30)):
        accumulator.update(index, sequence)
    found = accumulator.finish().covariance
    expected: Tensor = torch.cov(x.T, correction=0)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(found, found.T)
