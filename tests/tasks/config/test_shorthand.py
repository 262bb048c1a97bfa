"""The lists of a sweep are checked like every other parameter, and a short entry stands for what its name says."""

from pathlib import Path

import pytest

from mgaa.errors import UsageError
from tasks.config.parameters import load_parameters
from tests.support.processes import ROOT

FILE = ROOT / "params.yaml"
PARAMETERS = {"spectrum": "metric", "objective": "parameters", "profile": None, "tokens": None, "device": None}


def dumped(override: str, *more: str) -> list[object]:
    name = override.partition("=")[0].removeprefix("sweep.")
    found: list[object] = load_parameters(FILE, [override, *more]).sweep.model_dump()[name]
    return found


def test_the_file_of_the_repository_asks_for_every_factorizer_and_both_levels() -> None:
    sweep = load_parameters(FILE).sweep
    assert len(sweep.factors) * len(sweep.ratios) * len(sweep.ranks) * len(sweep.compression) == 120
    assert sweep.backbone[0].source == load_parameters(FILE).backbone.source


def test_the_name_of_the_selected_method_takes_its_options() -> None:
    selected = ["ratios.method=softmax", "ratios.temperature=0.3", "ratios.band=0.05", "ranks.multiple=2"]
    assert dumped("sweep.ratios=[softmax]", *selected) == [
        {"method": "softmax", "options": {"temperature": 0.3}, "band": 0.05, "residual": True}
    ]
    assert dumped("sweep.ranks=[energy]", *selected) == [
        {"method": "energy", "options": {"power": 1.0}, "multiple": 2, **PARAMETERS}
    ]


def test_the_name_of_another_method_takes_its_defaults_and_the_common_multiple() -> None:
    others = ["ratios.method=linear", "ranks.method=uniform", "ranks.multiple=2"]
    assert dumped("sweep.ratios=[softmax]", *others) == [
        {"method": "softmax", "options": {"temperature": 0.1}, "band": None, "residual": True}
    ]
    assert dumped("sweep.ranks=[energy]", *others) == [
        {"method": "energy", "options": {"power": 1.0}, "multiple": 2, **PARAMETERS}
    ]


def test_a_mapping_sets_options() -> None:
    assert dumped("sweep.ratios=[{method: softmax, temperature: 0.2, band: 0.05}, uniform]") == [
        {"method": "softmax", "options": {"temperature": 0.2}, "band": 0.05, "residual": True},
        {"method": "uniform", "options": {}, "band": None, "residual": True},
    ]
    assert dumped("sweep.ranks=[{method: energy, power: 0.5, multiple: 8}]") == [
        {"method": "energy", "options": {"power": 0.5}, "multiple": 8, **PARAMETERS}
    ]


def test_what_is_asked_of_all_ranks_holds_for_every_entry_that_says_nothing_else() -> None:
    latency = {"objective": "latency", "profile": "latency.json", "tokens": 1, "device": "cpu"}
    asked = [f"ranks.{name}={value}" for name, value in latency.items()]
    entries = "sweep.ranks=[energy,uniform,{method: energy, objective: parameters}]"
    selected, other, plain = (each.latency for each in load_parameters(FILE, [entries, *asked]).sweep.ranks)
    assert selected == other == {"profile": "latency.json", "tokens": 1, "device": "cpu"}
    assert plain is None


@pytest.mark.parametrize("given", ["sweep=null", "sweep={}"])
def test_what_is_left_out_is_what_the_sections_say(given: str, tmp_path: Path) -> None:
    text = FILE.read_text()
    start, end = text.index("\nsweep:"), text.index("\nstudy:")
    (tmp_path / "params.yaml").write_text(text[:start] + text[end:])
    parameters = load_parameters(tmp_path / "params.yaml", [given, "ratios.compression=0.3"])
    sweep = parameters.sweep
    assert (sweep.factors, sweep.ranks, sweep.compression) == ([parameters.factors], [parameters.ranks], [0.3])
    assert sweep.ratios[0].model_dump() == parameters.ratios.model_dump(exclude={"compression"})
    assert (sweep.backbone[0].source, sweep.split) == (parameters.backbone.source, "evaluation")


def test_a_backbone_of_the_hub_has_its_commit() -> None:
    assert dumped("sweep.backbone=[models/demo, {source: a/b, revision: abc}]", "backbone.revision=def") == [
        {"source": "models/demo", "revision": "def"},
        {"source": "a/b", "revision": "abc"},
    ]


def test_the_entries_are_told_as_they_are_written() -> None:
    flat = load_parameters(FILE, ["sweep.ratios=[{method: softmax, temperature: 0.2}]"]).flat()
    assert flat["sweep.ratios"] == [{"method": "softmax", "temperature": 0.2, "band": None, "residual": True}]


MISTAKES = {
    "sweep.factors=[afn]": r"sweep.factors.0: factors.method is 'afn': expected one of .*did you mean 'afm'",
    "sweep.factors=[]": r"sweep.factors is \[\]: expected at least one entry",
    "sweep.factors=afm": "sweep.factors is 'afm': expected a list",
    "sweep.ranks=[[3]]": r"sweep.ranks.0 is \['3'\]: expected a method's name, or a mapping such as",
    "sweep.ratios=[{temperature: 1.0}]": "sweep.ratios.0: ratios.method is None: expected one of",
    "sweep.ratios=[uniform,{method: uniform, temperature: 1.0}]": "sweep.ratios.1: ratios.temperature is unknown to the method",
    "sweep.ratios=[{method: softmax, temperature: hot}]": "sweep.ratios.0: ratios.temperature is 'hot': expected a number",
    "sweep.ratios=[{method: softmax, band: -1.0}]": "sweep.ratios.0.band is -1.0: expected 'auto' or a number greater than 0",
    "sweep.ratios=[{method: uniform, compression: 0.1}]": "sweep.ratios.0.compression is unknown: expected one of method, band, residual",
    "sweep.ratios=[{method: file}]": "sweep.ratios.0: ratios.path is missing",
    "sweep.compression=[0.2,2.0]": "sweep.compression.1 is 2.0: expected a number less than 1",
    "sweep.compression=0.2": "sweep.compression is '0.2': expected a list",
    "sweep.compression=[0.2,0.3,0.2]": r"sweep: compression.2 is compression.0 again, expected entries that differ",
    "sweep.ratios=[softmax,{method: softmax,temperature: 0.1,band: auto}]": "ratios.1 is ratios.0 again",
    "sweep.backbone=[[1]]": r"sweep.backbone.0 is \['1'\]: expected a section with the keys source, revision",
    "sweep.backbone=[{source: a, revison: b}]": "sweep.backbone.0.revison is unknown: .*did you mean 'revision'",
    "sweep.split=test": "sweep.split is 'test': expected 'evaluation' or 'validation'",
    "sweep.fators=[afm]": "sweep.fators is unknown: expected one of backbone, factors.*did you mean 'factors'",
    "sweep=[afm]": r"sweep is \['afm'\]: expected a section with the keys backbone, factors",
}


def test_a_mistake_in_a_section_is_not_told_again_for_the_sweep_that_takes_it() -> None:
    with pytest.raises(UsageError) as caught:
        load_parameters(FILE, ["ratios.band=-1", "ratios.compression=2", "sweep.compression=null"])
    assert [line.partition(" ")[0] for line in str(caught.value).splitlines()] == ["ratios.band", "ratios.compression"]


@pytest.mark.parametrize(("override", "message"), MISTAKES.items())
def test_a_mistake_is_explained(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_parameters(FILE, [override])
    assert "\n" not in str(caught.value)
