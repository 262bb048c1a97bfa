"""Truths of decompositions in flight: they fit into the memory that is free, and one goes in any case."""

import pytest
import torch
from torch import Tensor

from mgaa.decomposition.cuda_streams import STREAMS, together
from mgaa.decomposition.linalg import Metric, decompose, working_bytes
from tests.support.memory import peak_of


def moment(width: int) -> Tensor:
    x = torch.randn(2 * width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.T @ x / len(x)


@pytest.mark.parametrize(
    ("m", "n", "side"),
    [(256, 256, "input"), (64, 256, "input"), (1024, 192, "input"), (300, 256, "input"), (192, 512, "output")],
)
def test_a_decomposition_takes_what_it_says(m: int, n: int, side: str) -> None:
    weight = torch.randn(m, n, generator=torch.Generator().manual_seed(1)).bfloat16()
    metric = Metric(moment(n if side == "input" else m), side, 1.0)  # type: ignore[arg-type]
    rank = (m * n - 1) // (m + n)
    found = peak_of(lambda: decompose(weight, metric, rank=rank))
    assert working_bytes(m, n, rank, side=side) == pytest.approx(found, rel=0.05)  # type: ignore[arg-type]


@pytest.mark.parametrize("room", [-1, 0, 3, 7, 8, 12, 15, 100])
def test_whichever_decompositions_are_in_flight_they_fit(room: int) -> None:
    sizes = [1, 5, 3, 4, 2, 3, 1]
    count = together(sizes, room)
    assert 1 <= count <= STREAMS
    assert count == 1 or sum(sorted(sizes)[-count:]) <= room
    assert count == STREAMS or sum(sorted(sizes)[-count - 1 :]) > room


def test_no_more_are_in_flight_than_there_are() -> None:
    assert together([4, 4], 100) == 2
