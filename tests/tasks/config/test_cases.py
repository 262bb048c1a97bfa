"""The name of a case stands for a backbone with its data; what is set by hand wins, and a mistake is explained before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mgaa.errors import UsageError
from tasks.config.parameters import Parameters, load_parameters
from tests.support.processes import ROOT

FILE = ROOT / "params.yaml"
VISION = "case=vision"


def with_cases(folder: Path, cases: Any, case: Any = "mine") -> Path:
    """The parameters of the repository with other cases."""
    values = yaml.safe_load(FILE.read_text()) | {"case": case, "cases": cases}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    return folder / "params.yaml"


def test_without_a_choice_a_language_model_is_compressed() -> None:
    plain = load_parameters(FILE)
    assert (plain.case, plain.backbone.source, plain.data.questions) == ("language", "models/demo", [])
    assert (plain.output.results, plain.output.checkpoint) == ("results", "models/compressed")
    assert plain == load_parameters(FILE, ["case=language"])


def test_a_case_puts_its_values_in_the_place_of_those_of_the_sections() -> None:
    plain, vision = load_parameters(FILE), load_parameters(FILE, [VISION])
    assert (vision.case, vision.backbone.source, vision.backbone.parts) == ("vision", "models/demo-vlm", ["decoder"])
    given = vision.data.calibration
    assert (given.form, given.source, given.split, given.samples) == ("questions", "scenes", "calibration", 256)
    (asked,) = vision.data.questions
    assert (asked.name, asked.source, asked.split, asked.samples, asked.seed) == ("scenes", "scenes", "test", 1000, 0)
    assert (vision.data.recovery.form, vision.data.recovery.split) == ("questions", "train")
    assert vision.evaluation.tasks == []
    assert (vision.output.results, vision.output.checkpoint) == ("results/vision", "models/compressed-vlm")
    assert (vision.results, plain.results) == (ROOT / "results" / "vision", ROOT / "results")
    assert (vision.data.validation, vision.data.evaluation) == (plain.data.validation, plain.data.evaluation)
    assert (vision.factors, vision.ratios, vision.ranks) == (plain.factors, plain.ratios, plain.ranks)


def test_the_command_line_wins_over_what_a_case_stands_for() -> None:
    given = [
        "backbone.source=models/mine",
        "data.calibration.samples=7",
        "data.calibration.form=text",
        "evaluation.tasks=[last_word]",
        "data.questions=[]",
        "output.results=results/mine",
    ]
    found = load_parameters(FILE, [VISION, *given])
    assert (found.backbone.source, found.data.calibration.samples) == ("models/mine", 7)
    assert (found.data.calibration.form, found.data.calibration.split) == ("text", "calibration")
    assert (found.evaluation.tasks, found.data.questions) == (["last_word"], [])
    assert (found.output.results, found.output.checkpoint) == ("results/mine", "models/compressed-vlm")


def test_what_a_case_stands_for_can_be_overridden_too() -> None:
    assert load_parameters(FILE, [VISION, "cases.vision.data.calibration.samples=9"]).data.calibration.samples == 9


def test_a_method_wins_over_a_case_and_the_command_line_over_both(tmp_path: Path) -> None:
    path = with_cases(tmp_path, {"mine": {"statistics": {"inputs": "dense"}, "ratios": {"band": 0.5}}})
    found = load_parameters(path, ["method=lorap"])
    assert (found.statistics.inputs, found.ratios.band) == ("compressed", None)
    assert load_parameters(path).ratios.band == 0.5
    assert load_parameters(path, ["method=lorap", "ratios.band=0.3"]).ratios.band == 0.3


def test_a_case_may_choose_the_method(tmp_path: Path) -> None:
    found = load_parameters(with_cases(tmp_path, {"mine": {"method": "lorap"}}))
    assert (found.method, found.factors.method, found.channels.method) == ("lorap", "awsvd", "weighted")
    assert load_parameters(tmp_path / "params.yaml", ["method=mgaa"]).factors.method == "afm"


def test_an_empty_case_changes_nothing(tmp_path: Path) -> None:
    assert load_parameters(with_cases(tmp_path, {"mine": {}})).data == load_parameters(FILE).data


MISTAKES = {
    "case=visoin": r"case is 'visoin': expected one of language, vision, smollm2; did you mean 'vision'\?",
    "case=null": "case is 'null': expected one of language, vision",
    "case=[vision]": r"case is '\[vision\]': expected one of language, vision",
    "case=vision data.calibration.form=image": "data.calibration.form is 'image': expected 'text', 'chat' or 'questions'",
    "case=vision cases.vision.cases.x=1": r"cases.vision is .*: expected sections with their values, such as \{backbone",
    "case=vision cases.vision.case=language": "cases.vision is .*: expected sections with their values",
    "case=vision cases.vision.methods.x=1": "cases.vision is .*: expected sections with their values",
    "case=vision cases.vision=3": "cases.vision is '3': expected sections with their values",
    "case=vision cases.vision.backbone.sorce=x": "backbone.sorce is unknown: .*did you mean 'source'",
    "output.results=/results": "output: expected results to be a folder below that of the parameters, got /results",
    "output.results=../results": "output: expected results to be a folder below .*, got ../results",
    "output.checkpoint=models/../../x": "output: expected checkpoint to be a folder below .*, got models/../../x",
    "output.checkpoint=.": r"output: expected checkpoint to be a folder below .*, got \.",
    "output.result=x": "output.result is unknown: .*did you mean 'results'",
    "backbone.parts=[]": r"backbone.parts is \[\]: expected at least one",
    "backbone.parts=decoder": "backbone.parts is 'decoder': expected a list",
    "backbone.parts=[decoder,tower]": "backbone.parts.1 is 'tower': expected 'decoder', 'vision' or 'projector'",
    "data.questions=[{name: a, source: scenes},{name: b, source: scenes},{name: a, source: x.jsonl}]": (
        "data: expected questions with names that differ, got a twice"
    ),
    "data.questions=[{name: A, source: scenes}]": "data.questions.0.name is 'A': expected ",
    "data.questions=[{source: scenes}]": "data.questions.0.name is missing",
    "data.questions=[{name: a, source: scenes, samples: 0}]": "data.questions.0.samples is 0: expected a number greater",
    "data.questions=[{name: a, source: scenes, smaples: 3}]": "data.questions.0.smaples is unknown: .*mean 'samples'",
    "data.questions=scenes": "data.questions is 'scenes': expected a list",
    "evaluation.answer_tokens=0": "evaluation.answer_tokens is 0: expected a number greater than or equal to 1",
}


@pytest.mark.parametrize(("overrides", "message"), MISTAKES.items())
def test_a_mistake_is_explained(overrides: str, message: str) -> None:
    given = [overrides] if overrides.startswith("data.questions") else overrides.split()
    with pytest.raises(UsageError, match=message) as caught:
        load_parameters(FILE, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cases", [None, [], 3])
def test_cases_that_are_no_names_are_explained(cases: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cases is .*: expected the cases by name, each with its sections"):
        load_parameters(with_cases(tmp_path, cases))


@pytest.mark.parametrize(
    "parts", [["decoder"], ["decoder", "vision"], ["projector"], ["vision", "projector", "decoder"]]
)
def test_parts_are_any_of_three(parts: list[str]) -> None:
    assert load_parameters(FILE, [VISION, f"backbone.parts=[{','.join(parts)}]"]).backbone.parts == parts


def test_the_values_of_a_case_are_told_as_they_are_written() -> None:
    flat = load_parameters(FILE, [VISION]).flat()
    assert (flat["case"], flat["backbone.parts"], flat["output.results"]) == ("vision", ["decoder"], "results/vision")
    assert [each["name"] for each in flat["data.questions"]] == ["scenes"]
    assert not any(key.startswith("cases") for key in flat)


def test_every_case_of_the_repository_is_valid() -> None:
    for case in yaml.safe_load(FILE.read_text())["cases"]:
        for method in yaml.safe_load(FILE.read_text())["methods"]:
            assert isinstance(load_parameters(FILE, [f"case={case}", f"method={method}"]), Parameters)


PUBLISHED = ["data.evaluation.protocol=wikitext2", "data.evaluation.source=wiki.test.raw"]


def test_a_protocol_stands_for_all_whole_windows_of_2048_tokens_unless_others_are_stated(tmp_path: Path) -> None:
    given = load_parameters(FILE, PUBLISHED).data.evaluation
    assert (given.length, given.samples, given.stride, given.separator) == (2048, None, None, "auto")
    given = load_parameters(
        FILE, [*PUBLISHED, "data.evaluation.length=1024", "data.evaluation.samples=8"]
    ).data.evaluation
    assert (given.length, given.samples) == (1024, 8)
    case = {"mine": {"data": {"evaluation": {"protocol": "c4", "source": "c4.jsonl", "length": 512}}}}
    given = load_parameters(with_cases(tmp_path, case)).data.evaluation
    assert (given.protocol, given.length, given.samples) == ("c4", 512, None)
    assert load_parameters(FILE).data.evaluation.length == 256


def test_a_protocol_joins_rows_and_takes_no_rule_that_finds_documents() -> None:
    found = load_parameters(FILE, [*PUBLISHED, 'data.evaluation.separator="\\n\\n"']).data.evaluation
    assert found.separator == "\n\n"
    with pytest.raises(UsageError, match=r"expected separator: auto or what joins the rows, .* got 'none'"):
        load_parameters(FILE, [*PUBLISHED, "data.evaluation.separator=none"])
