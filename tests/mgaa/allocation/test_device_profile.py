"""A profile measures every shape of a model at ranks that enclose break-even, says on what, and reads back; how fast is not asked here."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgaa.allocation.device_profile import grid, measure
from mgaa.allocation.latency import load, shape_of
from mgaa.budget import Matrix
from mgaa.errors import UsageError

MATRICES = [
    Matrix(f"{block}.{name}", name, block, f"{block}.attention", m, n, bias, name)
    for block in range(2)
    for name, m, n, bias in (("q", 16, 16, True), ("k", 8, 16, False), ("o", 16, 16, False))
]


@given(m=st.integers(1, 5000), n=st.integers(1, 5000), step=st.sampled_from([1, 8]), count=st.integers(2, 20))
def test_the_grid_rises_from_the_first_step_to_break_even(m: int, n: int, step: int, count: int) -> None:
    ranks = grid(m, n, step, count)
    assert ranks == sorted(set(ranks))
    assert 1 <= len(ranks) <= count
    assert ranks[0] == min(step, m, n)
    assert ranks[-1] <= min(m, n)
    assert ranks[-1] >= Matrix("", "", 0, "", m, n, False).largest_rank(centred=False)  # nothing on a ladder is outside
    assert all(rank % step == 0 or rank == min(m, n) for rank in ranks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_shape_is_measured_once_at_every_number_of_tokens_and_reads_back(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    threads = torch.get_num_threads()
    profile = measure(MATRICES, dtype=dtype, tokens=(1, 3), repetitions=2, ranks=3, centred=False, threads=1)
    assert torch.get_num_threads() == threads
    assert [*profile.curves] == [*dict.fromkeys(map(shape_of, MATRICES))]
    for (m, n, _), curves in profile.curves.items():
        assert [*curves] == [1, 3]
        assert all([*curve.low_rank] == grid(m, n, 1, 3) for curve in curves.values())
    told = (profile.device, profile.dtype, profile.threads, profile.repetitions, profile.multiple, profile.centred)
    assert told == ("cpu", str(dtype).removeprefix("torch."), 1, 2, 1, False)
    assert profile.name
    profile.save(tmp_path / "new" / "latency.json")
    assert load(tmp_path / "new" / "latency.json") == profile


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("tokens", (), r"profile\.tokens is 0"),
        ("tokens", (1, 0), r"profile\.tokens is 0"),
        ("repetitions", 1, r"profile\.repetitions is 1, expected a whole number from 2"),
        ("ranks", 1, r"profile\.ranks is 1"),
        ("multiple", 0, r"ranks\.multiple is 0"),
    ],
)
def test_what_measures_nothing_is_refused(option: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure(MATRICES, dtype=torch.float32, **{option: value})  # type: ignore[arg-type]
