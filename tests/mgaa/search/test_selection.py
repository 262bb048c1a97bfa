"""The windows that are kept are those whose perplexity varies most between allocations."""

import pytest
import torch
from torch import Tensor

from mgaa.errors import UsageError
from mgaa.search import most_telling

PERPLEXITIES = torch.tensor([[1.0, 2.0, 4.0, 1.0], [2.0, 2.0, 4.0, 5.0], [3.0, 2.0, 7.0, 3.0]], dtype=torch.float64)
"""Of four windows under three allocations; their variances are 1, 0, 3 and 4."""
COUNTS = [1, 2, 3, 40]


def losses(perplexities: Tensor = PERPLEXITIES) -> Tensor:
    return perplexities.log() * torch.tensor(COUNTS)


@pytest.mark.parametrize(("number", "expected"), [(1, [3]), (2, [2, 3]), (3, [0, 2, 3]), (4, [0, 1, 2, 3])])
def test_the_windows_of_largest_variance_are_kept_in_file_order(number: int, expected: list[int]) -> None:
    kept, variances = most_telling(losses(), COUNTS, number)
    assert kept.tolist() == expected
    assert variances.tolist() == pytest.approx([1.0, 0.0, 3.0, 4.0], abs=1e-12)


def test_the_perplexity_counts_and_not_the_sum_over_tokens() -> None:
    sums = torch.tensor([[1.0, 100.0], [2.0, 110.0]])
    kept, _ = most_telling(sums, [1, 1000], 1)  # the long window moves by 10 nats, and by 0.01 per token
    assert kept.tolist() == [0]


@pytest.mark.parametrize(("number", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (4, [0, 1, 2, 4])])
def test_equal_variances_go_by_position(number: int, expected: list[int]) -> None:
    alike = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 2.0, 1.0, 2.0]])
    assert most_telling(alike, [1] * 5, number)[0].tolist() == expected


def test_the_order_of_the_allocations_does_not_matter() -> None:
    assert most_telling(losses().flip(0), COUNTS, 2)[0].tolist() == [2, 3]


def test_more_windows_than_there_are_is_refused() -> None:
    with pytest.raises(UsageError, match=r"search\.windows is 5, expected at most 4, the candidates"):
        most_telling(losses(), COUNTS, 5)


def test_a_single_allocation_tells_nothing_and_is_refused() -> None:
    with pytest.raises(UsageError, match=r"search\.selection is 1, expected at least 2 allocations"):
        most_telling(losses()[:1], COUNTS, 2)
