"""Bolaco in one call: the best trial is what the model becomes, and nothing else of it changes before."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mgaa.errors import UsageError
from mgaa.models.lowrank import low_rank_layers
from mgaa.search import compress_by_search_, objective
from mgaa.statistics.calibration import Measuring

Tiny = Callable[[str], PreTrainedModel]
FEW = Measuring(groups=4)


@pytest.fixture
def texts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 60, (20, 16), generator=generator)
    return tokens[:8], tokens[8:]


def test_the_model_becomes_the_best_trial(tiny: Tiny, texts: tuple[Tensor, Tensor]) -> None:
    model = tiny("llama")
    report, trials = compress_by_search_(
        model, *texts, evaluations=4, initial=2, selection=0, divergence=0.0, measuring=FEW
    )
    assert 0.2 <= report.compression + 1e-12 < 0.21
    assert report.budget_left >= 0
    assert all(matrix.rank is None for matrix in report.matrices if matrix.name.endswith("v_proj"))
    best = min(trial.objective for trial in trials if trial.objective is not None)
    assert objective(model, texts[1], None, weight=0.0).objective == pytest.approx(best, rel=1e-6)
    assert best > 0
    assert low_rank_layers(model)


def test_the_same_search_gives_the_same_model_and_a_longer_one_begins_with_it(
    tiny: Tiny, texts: tuple[Tensor, Tensor]
) -> None:
    given = {"initial": 2, "selection": 3, "windows": 4, "groups": 2, "measuring": FEW}
    short, again, longer = (
        compress_by_search_(tiny("llama"), *texts, evaluations=number, **given)[1] for number in (3, 3, 4)
    )
    assert short == again == longer[:3]


def test_what_cannot_be_searched_is_refused_and_leaves_the_model_as_it_was(
    tiny: Tiny, texts: tuple[Tensor, Tensor]
) -> None:
    model = tiny("llama")
    for given, words in (
        ({"method": "grid"}, "search.method is 'grid', expected one of gp, random"),
        ({"evaluations": 0}, "evaluations is 0"),
        ({"windows": 0}, "windows is 0"),
        ({"selection": 1}, "selection is 1"),
        ({"compression": 0.9}, "compression 0.9 is out of reach of this search"),
        ({"groups": 3}, "search.groups is 3, expected 1 to 2"),
        ({"measuring": None}, "statistics.groups is 32, but there are 8 calibration sequences"),
    ):
        with pytest.raises(UsageError, match=words):
            compress_by_search_(model, *texts, **{"measuring": FEW, **given})  # type: ignore[arg-type]
    assert not low_rank_layers(model)
