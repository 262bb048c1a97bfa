"""A sweep is every combination of its lists, each with a name of its own and the arguments that its steps take."""

import pytest

from mgaa.errors import UsageError
from tasks.config.parameters import load
from tasks.planning.recipes import recipes
from tasks.sweep.points import Point, points
from tests.support.processes import ROOT


def swept(*overrides: str) -> list[Point]:
    return points(load(ROOT / "params.yaml", overrides).sweep)


def test_every_combination_is_there_once_and_has_a_name_of_its_own() -> None:
    found = swept("sweep.compression=[0.2,0.25]", "sweep.factors=[svd,afm]")
    assert len({point.name for point in found}) == len(found) == 16
    assert found[0].name == "svd-uniform-uniform-0.2"
    assert found[-1].name == "afm-softmax-energy-0.25"
    assert [point.allocation for point in found[:4]] == ["uniform", "level2", "level1", "both"]


def test_methods_that_differ_in_options_alone_are_told_apart_by_them() -> None:
    maps = "[{method: softmax, temperature: 0.2, band: 0.05},{method: softmax, temperature: 0.5},uniform]"
    found = swept(f"sweep.ratios={maps}", "sweep.factors=[afm]", "sweep.compression=[0.2]")
    assert len({point.name for point in found}) == 6
    assert found[0].name == "afm-softmax(temperature=0.2 band=0.05)-uniform-0.2"
    assert len({point.allocation for point in found}) == 6
    assert found[0].allocation == "level1 softmax(temperature=0.2 band=0.05)"


def test_an_allocation_says_which_levels_act_and_which_of_several() -> None:
    one = ["sweep.factors=[afm]", "sweep.compression=[0.2]"]
    found = swept(*one, "sweep.ratios=[uniform,softmax,linear]")
    assert [point.allocation for point in found] == [
        *("uniform", "level2"),
        *("level1 softmax", "both softmax"),
        *("level1 linear", "both linear"),
    ]
    steps = swept(*one, "sweep.ratios=[uniform]", "sweep.ranks=[uniform,{method: uniform, multiple: 4},energy]")
    assert [point.allocation for point in steps] == ["uniform uniform", "uniform uniform(multiple=4)", "level2"]
    assert [point.even for point in steps] == [True, True, False]


def test_backbones_of_one_name_are_told_apart_by_their_place() -> None:
    found = swept("sweep.backbone=[a/model,b/model,c]", "sweep.factors=[afm]", "sweep.compression=[0.2]")
    assert [found[index].name.partition("-")[0] for index in (0, 4, 8)] == ["a/model", "b/model", "c"]
    assert len({point.name for point in found}) == 12


def test_a_point_has_the_arguments_of_a_run_of_its_own() -> None:
    selected = ["ratios.compression=0.3", "ranks.multiple=2", "ratios.temperature=0.4"]
    p = load(ROOT / "params.yaml", ["evaluation.baselines=[uniform,level1,level2]", *selected])
    found = {point.allocation: point for point in swept("sweep.compression=[0.3]", "sweep.factors=[afm]", *selected)}
    for name, recipe in recipes(p).items():
        assert found["both" if name == "mgaa" else name].recipe == recipe


def test_where_the_ratios_have_no_effect_a_baseline_without_them_is_the_method_itself() -> None:
    p = load(ROOT / "params.yaml", ["ranks.method=loss", "evaluation.baselines=[level2]"])
    with pytest.raises(UsageError, match=r"baselines has level2, which with these methods is the same as mgaa"):
        recipes(p)


def test_ratios_that_would_not_matter_beside_ranks_from_a_file_are_refused() -> None:
    file = "{method: file, path: a.json}"
    with pytest.raises(UsageError, match=r"sweep.ratios has uniform, which has no effect .*a sweep of their own"):
        swept(f"sweep.ranks=[energy,{file}]", "sweep.ratios=[uniform]")
    assert len(swept(f"sweep.ranks=[{file}]", f"sweep.ratios=[{file}]", "sweep.compression=[0.2]")) == 6
