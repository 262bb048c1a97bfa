"""Proposals are a function of what was found, of the seed and of the number of the trial; the Gaussian process beats random points."""

import importlib.util
from itertools import combinations
from statistics import fmean, median
from typing import Any

import optuna
import pytest
import torch

from mgaa.errors import UsageError
from mgaa.search import Found, propose

Point = list[float]
CENTRE = (0.2, 0.9, 0.5, 0.7, 0.35)


def value(point: Point) -> float:
    """Smooth, with its least at CENTRE: 0."""
    return sum((x - centre) ** 2 for x, centre in zip(point, CENTRE, strict=True))


def random(first: int = 0, count: int = 6, seed: int = 0) -> list[Point]:
    return propose("random", Found(), dimensions=5, first=first, count=count, seed=seed)


@pytest.fixture
def found() -> Found:
    """Six random points and their values."""
    points = random()
    return Found(points, [value(point) for point in points])


def improving(found: Found, first: int = 6, count: int = 1, **options: Any) -> list[Point]:
    return propose("gp", found, dimensions=5, first=first, count=count, **options)


# --- random points


def test_random_points_depend_on_seed_and_number_alone(found: Found) -> None:
    together = random(count=8)
    assert together == [random(first=number, count=1)[0] for number in range(8)]
    assert propose("random", found, dimensions=5, first=3, count=2, initial=1) == together[3:5]
    assert random(seed=1) != random(seed=2)
    assert len({tuple(point) for seed in range(5) for point in random(count=8, seed=seed)}) == 40


def test_random_points_fill_the_cube_evenly() -> None:
    points = torch.tensor(random(count=1000))
    assert bool(((points >= 0) & (points < 1)).all())
    for column in points.T:
        assert bool(((column.histc(10, 0, 1) - 100).abs() < 40).all())  # four standard deviations
    assert bool((torch.corrcoef(points.T) - torch.eye(5)).abs().max() < 0.13)


# --- the first points


@pytest.mark.parametrize("initial", [1, 3])
def test_the_first_points_are_random_for_both_methods(found: Found, initial: int) -> None:
    assert improving(Found(), first=0, count=initial, initial=initial) == random(count=initial)
    assert improving(found, initial=initial) != random(first=6, count=1)


def test_points_stay_random_until_something_was_found() -> None:
    assert improving(Found(failed=random()), first=6) == random(first=6, count=1)


@pytest.mark.parametrize("method", ["gp", "random"])
def test_a_start_comes_first_and_is_not_tried_again(found: Found, method: str) -> None:
    start = [0.5] * 5
    points = propose(method, Found(), dimensions=5, first=0, count=3, start=start)
    assert points == [start, *random(first=1, count=2)]
    assert start not in propose(method, found, dimensions=5, first=1, count=2, start=start)


# --- the Gaussian process


def test_equal_inputs_give_equal_proposals_to_the_bit(found: Found) -> None:
    assert improving(found, count=2) == improving(found, count=2)


def test_proposals_depend_on_the_values_the_seed_and_the_number(found: Found) -> None:
    other = Found(found.points, [*found.values][::-1])
    points = [improving(found), improving(other), improving(found, seed=1), improving(found, first=7)]
    assert len({tuple(point) for (point,) in points}) == 4


def test_a_proposal_does_not_depend_on_what_was_proposed_before(found: Found) -> None:
    fresh = improving(found)
    improving(Found(found.points[:5], found.values[:5]), first=5)
    torch.manual_seed(3)
    assert improving(found) == fresh


def test_points_proposed_together_are_distinct_and_in_the_cube(found: Found) -> None:
    points = improving(found, count=3)
    assert all(len(point) == 5 and all(0 <= x <= 1 for x in point) for point in points)
    assert all(max(abs(x - y) for x, y in zip(a, b, strict=True)) > 1e-3 for a, b in combinations(points, 2))
    assert points[0] == improving(found)[0]


def test_a_point_that_failed_is_not_proposed_again(found: Found) -> None:
    (point,) = improving(found)
    (other,) = improving(Found(found.points, found.values, [point]))
    assert max(abs(x - y) for x, y in zip(point, other, strict=True)) > 1e-3
    worst = Found([*found.points, point], [*found.values, max(found.values)])
    assert improving(worst) == [other]  # as if it were as bad as the worst


def test_a_value_far_above_all_others_counts_as_ten_times_as_far_above_the_median_as_the_least_is_below(
    found: Found,
) -> None:
    (point,) = random(first=6, count=1)
    middle = median([*found.values, 1e4])
    bound = middle + 10 * (middle - min(found.values))
    broken, bounded = (Found([*found.points, point], [*found.values, worst]) for worst in (1e4, bound))
    assert improving(broken, first=7) == improving(bounded, first=7)


def best_of_gp(seed: int, evaluations: int) -> float:
    points: list[Point] = []
    for number in range(evaluations):
        known = Found(points, [value(point) for point in points])
        points = [*points, *improving(known, first=number, seed=seed)]
    return min(value(point) for point in points)


@pytest.mark.slow
def test_the_gaussian_process_beats_random_search_at_equal_evaluations() -> None:
    seeds, evaluations = range(3), 25
    ours = fmean(best_of_gp(seed, evaluations) for seed in seeds)
    theirs = fmean(min(value(point) for point in random(count=evaluations, seed=seed)) for seed in seeds)
    assert theirs > 0.1
    assert ours < 0.1 * theirs


# --- refusals, and the package that it rests on


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UsageError, match=r"search\.method is 'grid', expected one of gp, random"):
        propose("grid", Found(), dimensions=5, first=0)


def test_a_missing_package_is_refused_with_the_remedy_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"search\.method=gp needs optuna, .*: pip install 'mgaa\[search\]'"):
        improving(Found(), first=0)
    assert len(random()) == 6


@pytest.mark.parametrize("level", [optuna.logging.DEBUG, optuna.logging.ERROR])
def test_a_proposal_says_nothing_and_leaves_the_verbosity_as_it_was(
    found: Found, level: int, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(level)
    try:
        improving(found)
        assert optuna.logging.get_verbosity() == level
    finally:
        optuna.logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
